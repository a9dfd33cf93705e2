#!/usr/bin/env python3
"""Times the training step of every kind of adapter against LoRA's at as many parameters, in turn, and prints one Markdown table.

    python3 bench/kinds.py --model sd15.safetensors [--program build/vulora] [--only TEXT] [--pairs 3] [--device cpu]

For every row the kind runs once, which says how many parameters it trains; LoRA gets the rank (at least 1) that comes nearest to that on
the row's own targets. Then come rounds of one process of each, one after the other, so that both see the same machine. A ratio is the
median of the rounds' own (the kind's time by LoRA's), with the lowest and highest in brackets; peak memory is that of the whole process.
Exit status 1 if a ratio is above --limit. Needs nothing but Python 3 itself.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Name, the kind's options, and the targets of the LoRA that it stands beside.
ROWS = [
    ("LoRA, rank 16", "--kind lora --rank 16", "attn-mlp"),
    ("LoRA, DoRA", "--kind lora --rank 16 --dora", "attn-mlp"),
    ("LoCon, rank 16", "--kind locon --rank 16", "full"),
    ("LoCon, DoRA", "--kind locon --rank 16 --dora", "full"),
    ("LoCon, Tucker", "--kind locon --rank 16 --tucker", "full"),
    ("LoHa, rank 8", "--kind loha --rank 8", "attn-mlp"),
    ("LoHa, DoRA", "--kind loha --rank 8 --dora", "attn-mlp"),
    ("LoHa, Tucker", "--kind loha --rank 8 --tucker --targets full", "full"),
    ("LoKr", "--kind lokr --rank 16", "attn-mlp"),
    ("LoKr, DoRA", "--kind lokr --rank 16 --dora", "attn-mlp"),
    ("LoKr, Tucker", "--kind lokr --rank 16 --tucker --targets full", "full"),
    ("GLoRA, rank 8", "--kind glora --rank 8", "attn-mlp"),
    ("(IA)^3", "--kind ia3", "attn-mlp"),
    ("OFT, rank 16", "--kind oft --rank 16", "attn-mlp"),
    ("BOFT, rank 10", "--kind boft --rank 10", "attn-mlp"),
    ("full difference", "--kind full", "attn-mlp"),
]


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a single-file checkpoint; bench/pytorch/random_sd15.py writes one")
    p.add_argument("--program", default=str(HERE.parent / "build" / "vulora"))
    p.add_argument("--device", default="cpu")
    p.add_argument("--precision", default="fp32")
    p.add_argument("--pixels", type=int, default=512)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--pairs", type=int, default=3, help="rounds")
    p.add_argument("--repeats", type=int, default=1, help="runs of a process, after one that warms up")
    p.add_argument("--only", default="", help="rows whose name has this text")
    p.add_argument("--limit", type=float, default=1.6)
    return p.parse_args()


class Failed(Exception):
    pass


def step(a, adapter, repeats):
    """What `vulora bench` says of a training step with that adapter."""
    command = [a.program, "bench", "--json", "--part", "train-step", "--model", a.model, "--device", a.device, "--precision", a.precision]
    command += ["--resolution", str(a.pixels), "--threads", str(a.threads), "--repeats", str(repeats), *adapter.split()]
    environment = os.environ | {"OMP_NUM_THREADS": str(a.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def row_of(a, name, adapter, targets, per_rank):
    """A row's cells; per_rank: parameters of LoRA of rank 1, by targets, filled in as they are needed."""
    if targets not in per_rank:
        per_rank[targets] = step(a, f"--kind lora --rank 1 --targets {targets}", 1)["parameters"]
    first = step(a, adapter, 1)
    rank = max(1, round(first["parameters"] / per_rank[targets]))
    lora = f"--kind lora --rank {rank} --targets {targets}"
    rounds = []
    for _ in range(a.pairs):
        rounds.append((step(a, lora, a.repeats), step(a, adapter, a.repeats)))
        say(name, "LoRA {:.3g} s, kind {:.3g} s".format(*(r["median_s"] for r in rounds[-1])))
    ratios = [kind["median_s"] / of_lora["median_s"] for of_lora, kind in rounds]
    times = [statistics.median(r[i]["median_s"] for r in rounds) for i in (0, 1)]
    memory = [max(r[i]["device_bytes"] or r[i]["peak_rss_bytes"] for r in rounds) / 2**30 for i in (0, 1)]
    ratio = f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
    cells = [name, f"{first['parameters'] / 1e6:.2f}", rank, f"{rank * per_rank[targets] / 1e6:.2f}", *(f"{t:.3g}" for t in times), ratio]
    return [*cells, *(f"{m:.2f}" for m in memory)], statistics.median(ratios)


def main():
    a = options()
    rows = [r for r in ROWS if a.only in r[0]]
    if not rows:
        raise SystemExit(f"no row has '{a.only}' in its name; there are: {', '.join(r[0] for r in ROWS)}")
    per_rank, lines, slow = {}, [], []
    for name, adapter, targets in rows:
        try:
            cells, ratio = row_of(a, name, adapter, targets, per_rank)
        except Failed as e:
            raise SystemExit(f"{name}: {e}") from None
        lines.append(cells)
        if ratio > a.limit:
            slow.append(name)
    print(f"{a.device} {a.precision}, {a.pixels}x{a.pixels}, {a.threads} threads; {a.pairs} rounds of {a.repeats} runs.\n")
    print("| kind | parameters, M | LoRA's rank | parameters, M | LoRA, s | kind, s | ratio | LoRA, GiB | kind, GiB |")
    print("|" + "---|" * 9)
    for cells in lines:
        print("| " + " | ".join(str(c) for c in cells) + " |")
    if slow:
        raise SystemExit(f"above {a.limit}: {', '.join(slow)}")


if __name__ == "__main__":
    main()
