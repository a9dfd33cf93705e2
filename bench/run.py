#!/usr/bin/env python3
"""Times vulora against its peers on this processor, in turn, and prints one Markdown table: PyTorch with diffusers and PEFT (--peers), and
stable-diffusion.cpp (--sdcpp), either or both.

    python3 bench/run.py --model sd15.safetensors --peers VENV/bin/python --sdcpp sd-cli [--program build/vulora] [--only TEXT] [--pairs 5]

For every row: each of a peer's settings once, to find its best; then rounds of one process of each, one after the other, so that all see
the same machine. A figure is the median of all runs of all rounds, with the lowest and highest in brackets; a ratio is the median of the
rounds' own (the peer's time by ours: above 1, vulora is faster). Peak memory is that of the whole process as the system counts it,
PyTorch's without what loading the file took.
Needs nothing but Python 3 itself; what runs is named in bench/README.md.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROWS = [
    (part, pixels, precision)
    for part, sizes in (("unet", (512, 256)), ("train-step", (512, 256)), ("vae-decode", (512,)))
    for pixels in sizes
    for precision in ("fp32", "bf16")
]
SDCPP_SETTINGS = {"default": [], "flash attention, direct convolution": ["--diffusion-fa", "--diffusion-conv-direct", "--vae-conv-direct"]}
SDCPP_TIMES = {"unet": ("generating image", "sampling completed"), "vae-decode": ("decoding 1 latents", "decode_first_stage completed")}
SDCPP_STEPS = 2
PEERS = ("PyTorch", "sd.cpp")
NAMES = {"unet": "U-Net evaluation", "train-step": "LoRA training step", "vae-decode": "VAE decoding"}


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="a single-file checkpoint; bench/pytorch/random_sd15.py writes one")
    p.add_argument("--peers", help="the Python that has torch, diffusers and peft")
    p.add_argument("--sdcpp", help="stable-diffusion.cpp's program sd-cli")
    p.add_argument("--program", default=str(HERE.parent / "build" / "vulora"))
    p.add_argument("--pairs", type=int, default=5, help="rounds")
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


def sdcpp(a, part, pixels, setting):
    """One picture of SDCPP_STEPS evaluations without guidance, timed by the program itself: it has no command for one part alone."""
    with tempfile.NamedTemporaryFile(suffix=".png") as out, tempfile.TemporaryFile() as log:
        command = [a.sdcpp, "-m", a.model, "-p", "a", "-o", out.name, "-W", str(pixels), "-H", str(pixels), "--steps", str(SDCPP_STEPS)]
        command += ["--cfg-scale", "1", "--sampling-method", "euler", "-t", str(a.threads), "-v", *SDCPP_SETTINGS[setting]]
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        log.seek(0)
        text = log.read().decode(errors="replace")
    begin, end = SDCPP_TIMES[part]
    found = re.search(begin + "(.*?)" + end + r", taking ([0-9.]+)s", text, re.DOTALL)
    if status or not found:
        raise Failed((text.strip().splitlines() or ["no output"])[-1])
    loading = sum(float(s) for s in re.findall(r"loading tensors completed, taking ([0-9.]+)s", found[1]))
    seconds = (float(found[2]) - loading) / (SDCPP_STEPS if part == "unet" else 1)
    return {"median_s": seconds, "runs_s": [seconds], "peak_rss_bytes": usage.ru_maxrss * 1024}


class Row:
    def __init__(self, a, part, pixels, precision):
        self.options = a
        self.part, self.pixels, self.precision = part, pixels, precision
        self.name = f"{part} {pixels} {precision}"
        self.failed, self.setting, self.rounds = {}, {}, []

    def arguments(self, repeats):
        a = self.options
        out = ["--model", a.model, "--part", self.part, "--resolution", str(self.pixels), "--precision", self.precision]
        return [*out, "--threads", str(a.threads), "--repeats", str(repeats), *(["--rank", str(a.rank)] if self.part == "train-step" else [])]

    def ours(self, repeats):
        targets = ["--targets", "attn"] if self.part == "train-step" else []
        return call([self.options.program, "bench", "--json", "--device", "cpu", *self.arguments(repeats), *targets], self.options.threads)

    def pytorch(self, repeats, *more):
        script = str(HERE / "pytorch" / "peer.py")
        return call([self.options.peers, script, *self.arguments(repeats), *more], self.options.threads)

    def settings(self, who):
        """What a peer can be set to for this row; empty: it does not take part."""
        if who == "PyTorch":
            return self.pytorch(1, "--settings") if self.options.peers else []
        # its weights are fp16 and its arithmetic fp32: it stands beside our fp32
        return SDCPP_SETTINGS if self.options.sdcpp and self.part in SDCPP_TIMES and self.precision == "fp32" else []

    def measure(self, who, repeats):
        if who == "vulora":
            return self.ours(repeats)
        if who == "PyTorch":
            return self.pytorch(repeats, "--setting", self.setting[who])
        return sdcpp(self.options, self.part, self.pixels, self.setting[who])

    def choose(self, who):
        """The fastest of a peer's settings."""
        times = {}
        for s in self.settings(who):
            self.setting[who] = s
            times[s] = self.measure(who, 1)["median_s"]
        if times:
            self.setting[who] = min(times, key=times.get)
            say(self.name, f"{who}:", ", ".join(f"{s} {t:.3g} s" for s, t in times.items()))

    def attempt(self, who, what):
        try:
            what()
        except Failed as e:
            self.failed[who] = str(e)
            say(self.name, f"{who} cannot: {e}")

    def run(self):
        for who in PEERS:
            self.attempt(who, lambda: self.choose(who))
        self.attempt("vulora", lambda: self.ours(1))
        taking_part = [who for who in ("vulora", *self.setting) if who not in self.failed]
        for i in range(self.options.pairs):
            self.rounds.append({who: self.measure(who, self.options.repeats) for who in taking_part})
            say(self.name, f"round {i + 1}:", ", ".join(f"{who} {r['median_s']:.3g} s" for who, r in self.rounds[-1].items()))

    def figures(self, who):
        """Seconds and memory of one side, as two cells."""
        results = [r[who] for r in self.rounds if who in r]
        if not results:
            return "-", "-"
        runs = [t for r in results for t in r["runs_s"]]
        memory = max(r["peak_rss_bytes"] for r in results)
        return f"{statistics.median(runs):.3g} ({min(runs):.3g} to {max(runs):.3g})", f"{memory / 2**30:.2f}"

    def ratio(self, who):
        ratios = [r[who]["median_s"] / r["vulora"]["median_s"] for r in self.rounds if who in r and "vulora" in r]
        return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "-"

    def line(self, peers):
        cells = [NAMES[self.part], self.pixels, self.precision, *self.figures("vulora")]
        for who in peers:
            cells += [*self.figures(who), self.ratio(who), self.setting.get(who, "-")]
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
    if not a.peers and not a.sdcpp:
        raise SystemExit("name a peer: --peers PYTHON, --sdcpp PROGRAM, or both")
    wanted = [r for r in ROWS if a.only in " ".join(map(str, r))]
    rows = [Row(a, *r) for r in dict.fromkeys((part, a.pixels or pixels, precision) for part, pixels, precision in wanted)]
    if not rows:
        raise SystemExit(f"no row has '{a.only}' in its name; there are: {', '.join(' '.join(map(str, r)) for r in ROWS)}")
    for row in rows:
        row.run()
    torch = next((r["PyTorch"]["device"] + "; " for row in rows for r in row.rounds if "PyTorch" in r), "")
    print(f"{processor()}, {a.threads} threads; {torch}{a.pairs} rounds of {a.repeats} runs; adapters of rank {a.rank} on attention.\n")
    peers = [who for who in PEERS if any(who in row.setting for row in rows)]
    print("| part | pixels | precision | vulora, s | GiB |" + "".join(f" {who}, s | GiB | ratio | its setting |" for who in peers))
    print("|" + "---|" * (5 + 4 * len(peers)))
    for row in rows:
        print(row.line(peers))
    for row in rows:
        for who, why in row.failed.items():
            print(f"\n{row.name}: {who}: {why}")


if __name__ == "__main__":
    main()
