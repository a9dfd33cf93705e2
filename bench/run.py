#!/usr/bin/env python3
"""Times vulora against PyTorch, diffusers and PEFT on this processor, in turn, and prints one Markdown table.

    python3 bench/run.py --model sd15.safetensors --peers VENV/bin/python [--program build/vulora] [--only TEXT] [--pairs 5]

For every row: each of PyTorch's settings once, to find its best; then pairs of one vulora and one PyTorch process, one after the other, so
that both see the same machine. A figure is the median of all runs of all pairs, with the lowest and highest in brackets; the ratio is the
median of the pairs' own (PyTorch's time by ours: above 1, vulora is faster). Peak memory is that of the whole process as the system
counts it, PyTorch's without what loading the file took.
Needs nothing but Python 3 itself; what runs is named in bench/README.md.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROWS = [
    (part, pixels, precision)
    for part, sizes in (("unet", (512, 256)), ("train-step", (512, 256)), ("vae-decode", (512,)))
    for pixels in sizes
    for precision in ("fp32", "bf16")
]
NAMES = {"unet": "U-Net evaluation", "train-step": "LoRA training step", "vae-decode": "VAE decoding"}


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a single-file checkpoint; bench/pytorch/random_sd15.py writes one")
    p.add_argument("--peers", required=True, help="the Python that has torch, diffusers and peft")
    p.add_argument("--program", default=str(HERE.parent / "build" / "vulora"))
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--repeats", type=int, default=2, help="runs of a process, after one that warms up")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--pixels", type=int, help="instead of every row's own size, for trying it out")
    p.add_argument("--only", default="", help="rows whose name has this text: 'unet', 'bf16', 'train-step 256'")
    return p.parse_args()


class Failed(Exception):
    pass


def call(command, threads):
    """The JSON object that a command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


class Row:
    def __init__(self, a, part, pixels, precision):
        self.options = a
        self.part, self.pixels, self.precision = part, pixels, precision
        self.name = f"{part} {pixels} {precision}"
        self.failed, self.setting, self.pairs = {}, None, []

    def arguments(self, repeats):
        a = self.options
        out = ["--model", a.model, "--part", self.part, "--resolution", str(self.pixels), "--precision", self.precision]
        return [*out, "--threads", str(a.threads), "--repeats", str(repeats), *(["--rank", str(a.rank)] if self.part == "train-step" else [])]

    def ours(self, repeats):
        targets = ["--targets", "attn"] if self.part == "train-step" else []
        return call([self.options.program, "bench", "--json", "--device", "cpu", *self.arguments(repeats), *targets], self.options.threads)

    def peer(self, repeats, *more):
        script = str(HERE / "pytorch" / "peer.py")
        return call([self.options.peers, script, *self.arguments(repeats), *more], self.options.threads)

    def choose(self):
        """PyTorch's fastest setting."""
        times = {s: self.peer(1, "--setting", s)["median_s"] for s in self.peer(1, "--settings")}
        self.setting = min(times, key=times.get)
        say(self.name, "PyTorch:", ", ".join(f"{s} {t:.3g} s" for s, t in times.items()))

    def run(self):
        for who, measure in (("PyTorch", self.choose), ("vulora", lambda: self.ours(1))):
            try:
                measure()
            except Failed as e:
                self.failed[who] = str(e)
                say(self.name, f"{who} cannot: {e}")
        for i in range(self.options.pairs):
            pair = {}
            if "vulora" not in self.failed:
                pair["vulora"] = self.ours(self.options.repeats)
            if "PyTorch" not in self.failed:
                pair["PyTorch"] = self.peer(self.options.repeats, "--setting", self.setting)
            self.pairs.append(pair)
            say(self.name, f"pair {i + 1}:", ", ".join(f"{who} {r['median_s']:.3g} s" for who, r in pair.items()))

    def figures(self, who):
        """Seconds and memory of one side, as two cells."""
        results = [pair[who] for pair in self.pairs if who in pair]
        if not results:
            return "-", "-"
        runs = [t for r in results for t in r["runs_s"]]
        memory = max(r["peak_rss_bytes"] for r in results)
        return f"{statistics.median(runs):.3g} ({min(runs):.3g} to {max(runs):.3g})", f"{memory / 2**30:.2f}"

    def ratio(self):
        ratios = [p["PyTorch"]["median_s"] / p["vulora"]["median_s"] for p in self.pairs if len(p) == 2]
        return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"

    def line(self):
        (ours, our_memory), (theirs, their_memory) = self.figures("vulora"), self.figures("PyTorch")
        cells = NAMES[self.part], self.pixels, self.precision, ours, theirs, self.ratio(), our_memory, their_memory, self.setting or "-"
        return "| " + " | ".join(str(c) for c in cells) + " |"


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def main():
    a = options()
    wanted = [r for r in ROWS if a.only in " ".join(map(str, r))]
    rows = [Row(a, *r) for r in dict.fromkeys((part, a.pixels or pixels, precision) for part, pixels, precision in wanted)]
    if not rows:
        raise SystemExit(f"no row has '{a.only}' in its name; there are: {', '.join(' '.join(map(str, r)) for r in ROWS)}")
    for row in rows:
        row.run()
    torch = next((p["PyTorch"]["device"] for row in rows for p in row.pairs if "PyTorch" in p), "PyTorch did not run")
    print(f"{processor()}, {a.threads} threads; {torch}; {a.pairs} pairs of {a.repeats} runs; adapters of rank {a.rank} on attention.\n")
    print("| part | pixels | precision | vulora, s | PyTorch, s | ratio | vulora, GiB | PyTorch, GiB | PyTorch's setting |")
    print("|" + "---|" * 9)
    for row in rows:
        print(row.line())
    for row in rows:
        for who, why in row.failed.items():
            print(f"\n{row.name}: {who}: {why}")


if __name__ == "__main__":
    main()
