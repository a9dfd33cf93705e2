"""Compares every part of a single-file checkpoint, at full size, with diffusers, transformers and peft in fp32 on the CPU.

    python bench/pytorch/random_sd15.py MODEL.safetensors      or a real one, or tests/reference/random_full_size.py's
    python tests/reference/check_full_size.py VULORA MODEL.safetensors WORK [--parts unet,...] [--vulkan llvmpipe]

VULORA is the program. What PyTorch computed is kept in the folder WORK (which belongs to one model) for the next run. Prints Markdown tables of
relative L2 errors: the CPU's kernels at --pixels (512), in fp32 and bf16; with --vulkan that device at --vulkan-pixels (64 and 128),
in fp32 and fp16, with the kernels a software device is given and with those that cards are. Beside ours stands what PyTorch itself loses
in the short formats (autocast). A part's figure is that of its worst output; gradients are told for all tensors together, and for
the worst one. Exits with 1 when one in fp32 is above 5e-5.

Takes 7.5 GB of memory; with two threads seven minutes for the CPU's kernels, for a software Vulkan device an hour.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from model_parts import PREFIXES, add_lora, load_scheduler, load_text_encoder, load_unet, load_vae
from model_parts import mean_squared_error, overall, relative, text_states
from safetensors.torch import load_file, save_file

LIMIT = 5e-5
PARTS = ("text-encoder", "unet", "vae-encode", "vae-decode", "train-grad")
LOADERS = {"text-encoder": load_text_encoder, "vae-encode": load_vae, "vae-decode": load_vae}
KERNELS = ("portable", "avx2", "avx512", "avx512bf16", "amx")
RANK = 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # as `--targets attn`
SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}
GRAD_SCALE = 1024.0  # as a GradScaler: fp16 has no small numbers


# ---- inputs ----


def smooth_image(pixels):
    """Something with large and small structure, in -1..1."""
    up = lambda side: torch.nn.functional.interpolate(torch.randn(1, 3, side, side), size=(pixels, pixels), mode="bicubic")
    return torch.tanh(up(4) + 0.4 * up(pixels // 8) + 0.1 * torch.randn(1, 3, pixels, pixels))


def token_ids():
    ids = torch.full((2, 77), 49407)
    ids[:, 0] = 49406
    ids[0, 1:13], ids[1, 1:76] = torch.randint(0, 49000, (12,)), torch.randint(0, 49000, (75,))
    return ids


def make_inputs(part, pixels, width):
    torch.manual_seed(pixels)
    side = pixels // 8
    latents, noise, states = torch.randn(1, 4, side, side), torch.randn(1, 4, side, side), torch.randn(1, 77, width)
    return {
        "text-encoder": lambda: {"input_ids": token_ids()},
        "unet": lambda: {"sample": latents, "timestep": torch.tensor([601.0]), "encoder_hidden_states": states},
        "vae-encode": lambda: {"image": smooth_image(pixels)},
        "vae-decode": lambda: {"latents": 5 * latents},
        "train-grad": lambda: {"latents": latents, "noise": noise, "timestep": torch.tensor([371]), "encoder_hidden_states": states},
    }[part]()


def make_adapter(unet):
    """A LoRA as it is in the middle of a training: both factors have something in them."""
    torch.manual_seed(7)
    out = {}
    for name, module in unet.named_modules():
        if "attn" in name and name.endswith(ATTENTION):
            key = PREFIXES["unet"] + name.replace(".", "_")
            out[key + ".lora_down.weight"] = torch.randn(RANK, module.in_features) / module.in_features**0.5
            out[key + ".lora_up.weight"] = 0.2 * torch.randn(module.out_features, RANK) / RANK**0.5
            out[key + ".alpha"] = torch.tensor(float(RANK))
    return out


# ---- PyTorch ----


def forward(part, model, given):
    if part == "text-encoder":
        output = model(given["input_ids"], output_hidden_states=True)
        return {
            "last_hidden_state": output.last_hidden_state,
            "penultimate": text_states(model, given["input_ids"], 2),
            "pooled": output.pooler_output,
        }
    if part == "unet":
        return {"noise_pred": model(given["sample"], given["timestep"], given["encoder_hidden_states"]).sample}
    if part == "vae-encode":
        posterior = model.encode(given["image"]).latent_dist
        return {"mean": posterior.mean, "logvar": posterior.logvar}
    return {"image": model.decode(given["latents"]).sample}


def gradient(model, parameters, alphas, given):
    for p in parameters.values():
        p.grad = None
    loss = mean_squared_error(model, alphas, given["latents"], given["noise"], given["timestep"], given["encoder_hidden_states"])
    (GRAD_SCALE * loss).backward()
    return {"loss": loss.detach()} | {k: p.grad / GRAD_SCALE for k, p in parameters.items()}


class Reference:
    """What PyTorch computes of one part, in fp32 and in the short formats; kept in files."""

    def __init__(self, options):
        self.options = options
        self.model, self.part = None, None

    def load(self, part):
        """The part's model alone: the one before is let go first."""
        if self.part == part:
            return
        self.model, self.part = None, None
        gc.collect()
        self.model = LOADERS.get(part, load_unet)(self.options.model, torch.float32)
        if part == "train-grad":
            adapter = make_adapter(self.model)
            save_file(adapter, self.options.work / "adapter.safetensors")
            self.parameters = add_lora(self.model, PREFIXES["unet"], adapter)
            self.alphas = load_scheduler(self.options.model).alphas_cumprod
        self.part = part

    def compute(self, part, given, precision):
        cast = torch.autocast("cpu", SHORT[precision]) if precision in SHORT else contextlib.nullcontext()
        if part == "train-grad":
            with cast:
                return gradient(self.model, self.parameters, self.alphas, given)
        with torch.no_grad(), cast:
            return forward(part, self.model, given)

    def get(self, part, pixels, precision):
        """(inputs, outputs)"""
        paths = [self.options.work / f"{part}-{pixels}-{what}.safetensors" for what in ("input", precision)]
        if not paths[1].exists():
            self.load(part)
            width = self.model.config.cross_attention_dim if part in ("unet", "train-grad") else 0
            given = make_inputs(part, pixels, width)
            save_file(given, paths[0])
            found = self.compute(part, given, precision)
            save_file({k: v.detach().float().contiguous() for k, v in found.items()}, paths[1])
        return load_file(paths[0]), load_file(paths[1])


# ---- ours ----


OTHER_PROCESSOR = "this processor does not run them"


class Refused(Exception):
    pass


def probe(options, part, given, arguments, environment):
    with tempfile.TemporaryDirectory() as folder:
        source, result = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
        save_file(given, source)
        command = [options.program, "probe", part, "--model", options.model, "--input", source, "--output", result, "--quiet"]
        command += ["--lora", options.work / "adapter.safetensors"] if part == "train-grad" else []
        command += [*arguments, "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, env={"OMP_WAIT_POLICY": "passive"} | os.environ | environment)
        if done.returncode:
            raise Refused((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
        return load_file(result)


# ---- tables ----


def errors(part, found, expected):
    """{row: error}"""
    assert found.keys() == expected.keys(), "other tensors than PyTorch's"
    if part != "train-grad":
        return {part: max(relative(found[k], expected[k]) for k in expected)}
    whole, worst = overall([(found[k], v) for k, v in expected.items() if k != "loss"])
    return {"train-grad: loss": relative(found["loss"], expected["loss"]), "gradient": whole, "gradient, worst tensor": worst}


def scale(part, expected):
    """{row: size of the reference}, so that a degenerate model shows: standard deviations."""
    if part != "train-grad":
        return {part: "/".join(f"{v.std():.2g}" for v in expected.values())}
    gradients = torch.cat([v.flatten() for k, v in expected.items() if k != "loss"])
    return {"train-grad: loss": f"{expected['loss'].item():.2g}", "gradient": f"{gradients.std():.2g}", "gradient, worst tensor": ""}


class Table:
    def __init__(self, options, reference, pixels, columns):
        """columns: {heading: (arguments, environment, precision)}"""
        self.options, self.reference, self.pixels, self.columns = options, reference, pixels, columns
        self.failed = False

    def cells(self, part):
        """{row: [scale, PyTorch's own errors..., ours...]}"""
        given, expected = self.reference.get(part, self.pixels, "fp32")
        rows = {row: [text] for row, text in scale(part, expected).items()}
        for precision in self.short():
            for row, value in errors(part, self.reference.get(part, self.pixels, precision)[1], expected).items():
                rows[row].append(f"{value:.1e}")
        for heading, (arguments, environment, precision) in self.columns.items():
            try:
                found = errors(part, probe(self.options, part, given, arguments, environment), expected)
            except Refused as refusal:
                found = {row: None for row in rows}
                print(f"{part}, {heading}: {refusal}", file=sys.stderr)
                self.failed |= OTHER_PROCESSOR not in str(refusal)
            for row, value in found.items():
                bad = precision == "fp32" and value is not None and not value <= LIMIT
                self.failed |= bad
                rows[row].append("-" if value is None else f"**{value:.1e}**" if bad else f"{value:.1e}")
        return rows

    def short(self):
        return [p for p in SHORT if any(precision == p for _, _, precision in self.columns.values())]

    def print(self):
        headings = ["", "scale", *(f"PyTorch {p}" for p in self.short()), *self.columns]
        print(f"\n{self.pixels}x{self.pixels} pixels, relative L2 error against PyTorch fp32 (limit in fp32 {LIMIT:.0e})\n")
        print("| " + " | ".join(headings) + " |\n|" + "---|" * len(headings), flush=True)
        for part in self.options.parts:
            for row, cells in self.cells(part).items():
                print("| " + " | ".join([row, *cells]) + " |", flush=True)


def cpu_columns(options):
    columns = {f"fp32 {k}": (["--device", "cpu", "--cpu-kernels", k, "--precision", "fp32"], {}, "fp32") for k in options.kernels}
    for k in options.kernels:
        if k in ("avx512bf16", "amx"):
            columns[f"bf16 {k}"] = (["--device", "cpu", "--cpu-kernels", k, "--precision", "bf16"], {}, "bf16")
    return columns


def vulkan_columns(device):
    kernels = {"": {}, ", cards' kernels": {"VULORA_VK_LARGE_KERNELS": "1"}}
    return {
        f"{precision}{name}": (["--device", device, "--precision", precision], environment, precision)
        for precision in ("fp32", "fp16")
        for name, environment in kernels.items()
    }


def main():
    listed = lambda text: text.split(",")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--parts", type=listed, default=PARTS, help="of " + ",".join(PARTS))
    parser.add_argument("--kernels", type=listed, default=KERNELS, help="of the CPU, of " + ",".join(KERNELS))
    parser.add_argument("--pixels", type=int, default=512, help="for the CPU; 0 leaves it out")
    parser.add_argument("--vulkan", metavar="DEVICE", help="check this Vulkan device too")
    parser.add_argument("--vulkan-pixels", type=listed, default=("64", "128"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    reference = Reference(options)
    tables = [Table(options, reference, options.pixels, cpu_columns(options))] if options.pixels else []
    if options.vulkan:
        tables += [Table(options, reference, int(p), vulkan_columns(options.vulkan)) for p in options.vulkan_pixels]
    for table in tables:
        table.print()
    raise SystemExit(any(table.failed for table in tables))


if __name__ == "__main__":
    main()
