"""Draws a picture with a single-file checkpoint and an adapter in diffusers, transformers and peft in fp32 on the CPU, and compares it with
`vulora probe` from the same noise: tokens, text states, every sampling step with guidance, decoding.

    python tests/reference/check_denoise.py VULORA MODEL.safetensors [--lora ADAPTER.safetensors] [--sampler ddim] [--steps 20] [--bf16]

Prints relative L2 errors, and how far the finished pictures (8 bits) are apart. --bf16 also draws it in bf16, here (autocast) and with
VULORA. Exits with 1 when the latents in fp32 are above the limit. 5 GB of memory; at 512x512 some five minutes.
"""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import tempfile

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from model_parts import PREFIXES, add_lora, load_scheduler, load_text_encoder, load_unet, load_vae, relative
from safetensors.torch import load_file, save_file

LIMIT = 1e-3  # twenty steps build on each other's errors
SAMPLERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmpp-2m": DPMSolverMultistepScheduler}
SCALING = 0.18215


class Program:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder

    def run(self, part, given, *arguments):
        o, source, result = self.options, f"{self.folder}/in.safetensors", f"{self.folder}/out.safetensors"
        save_file(given, source)
        command = [o.program, "probe", part, "--model", o.model, "--input", source, "--output", result, "--quiet"]
        command += ["--device", o.device, "--threads", str(o.threads), *(["--lora", o.lora] if o.lora else []), *arguments]
        subprocess.run(command, check=True, env={"OMP_WAIT_POLICY": "passive"} | os.environ)
        return load_file(result)

    def tokens(self, prompts):
        source = pathlib.Path(self.folder, "prompts.txt")
        source.write_text("".join(p + "\n" for p in prompts))
        command = [self.options.program, "probe", "tokenizer", "--model", self.options.model, "--input", source, "--quiet"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return torch.tensor([json.loads(line) for line in done.stdout.splitlines()])

    def draw(self, noise, ids, precision):
        """(text states, latents, picture)"""
        o, chosen = self.options, ["--precision", precision]
        states = self.run("text-encoder", {"input_ids": ids}, *chosen)["last_hidden_state"]
        given = {"noise": noise, "encoder_hidden_states": states[:1].clone(), "uncond_hidden_states": states[1:].clone()}
        sampling = ["--sampler", o.sampler, "--steps", str(o.steps), "--cfg", str(o.cfg)]
        latents = self.run("denoise", given, *chosen, *sampling)["latents"]
        return states, latents, self.run("vae-decode", {"latents": latents / SCALING}, *chosen)["image"]


class Peer:
    def __init__(self, options):
        self.options = options
        self.text = load_text_encoder(options.model, torch.float32)
        self.unet = load_unet(options.model, torch.float32)
        self.vae = load_vae(options.model, torch.float32)
        if options.lora:
            values = load_file(options.lora)
            for part, model in (("unet", self.unet), ("text_encoder", self.text)):
                add_lora(model, PREFIXES[part], {k: v.float() for k, v in values.items()})

    @torch.no_grad()
    def draw(self, noise, ids, precision):
        o, scheduler = self.options, load_scheduler(self.options.model, SAMPLERS[self.options.sampler])
        scheduler.set_timesteps(o.steps)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            states = self.text(ids).last_hidden_state.float()
            latents = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                sample = scheduler.scale_model_input(latents, t)
                with_prompt, without = (self.unet(sample, t, s).sample.float() for s in (states[:1], states[1:]))
                latents = scheduler.step(without + o.cfg * (with_prompt - without), t, latents).prev_sample
            return states, latents, self.vae.decode(latents / SCALING).sample.float()


def bytes_of(image):
    return ((image / 2 + 0.5).clamp(0, 1) * 255).round()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--lora", type=pathlib.Path)
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--prompt", default="a tabby cat looking at the camera, on a wooden table")
    parser.add_argument("--negative", default="blurry")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    noise = torch.randn(1, 4, options.pixels // 8, options.pixels // 8)
    drawn = {}
    with tempfile.TemporaryDirectory() as folder:
        program = Program(options, folder)
        ids, precisions = program.tokens([options.prompt, options.negative]), ["fp32", *(["bf16"] if options.bf16 else [])]
        for precision in precisions:
            drawn["vulora " + precision] = program.draw(noise, ids, precision)
    peer = Peer(options)
    for precision in precisions:
        drawn["PyTorch " + precision] = peer.draw(noise, ids, precision)
    expected = drawn.pop("PyTorch fp32")
    deviations = " / ".join(f"{value.std():.2g}" for value in expected)
    print(f"{options.sampler}, {options.steps} steps, guidance {options.cfg:g}, {options.pixels}x{options.pixels}: against PyTorch fp32")
    print(f"(standard deviation of its text states / latents / picture: {deviations})\n")
    print("| | text states | latents at the end | picture | pixels that differ | by at most |\n|" + "---|" * 6)
    for name, found in drawn.items():
        texts = [f"{relative(value, e):.1e}" for value, e in zip(found, expected)]
        apart = (bytes_of(found[2]) - bytes_of(expected[2])).abs()
        print(f"| {name} | " + " | ".join(texts) + f" | {(apart > 0).float().mean():.2%} | {int(apart.max())} of 255 |")
    raise SystemExit(not relative(drawn["vulora fp32"][1], expected[1]) <= LIMIT)


if __name__ == "__main__":
    main()
