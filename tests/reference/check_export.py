"""Loads an adapter that vulora trained into diffusers and compares both models' outputs with it.

    python tests/reference/check_export.py VULORA MODEL ADAPTER.safetensors

VULORA is the program, MODEL the diffusers folder that the adapter was trained on. Exits with 1 when a key is left over or an output differs.
"""

import json
import logging
import pathlib
import subprocess
import sys
import tempfile

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from model_parts import relative
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

LIMIT = 2e-5


class Complaints(logging.Handler):
    """Collects warnings: diffusers says there which keys it did not use."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def probe(program, part, model, adapter, inputs):
    with tempfile.TemporaryDirectory() as folder:
        source, result = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
        save_file(inputs, source)
        command = [program, "probe", part, "--model", model, "--input", source, "--output", result]
        command += ["--device", "cpu", "--quiet"] + (["--lora", adapter] if adapter else [])
        subprocess.run(command, check=True)
        return load_file(result)


def load(model, adapter):
    """The models with the adapter, and what diffusers complained about."""
    complaints = Complaints()
    diffusers_logging.get_logger("diffusers").addHandler(complaints)
    unet = UNet2DConditionModel.from_pretrained(f"{model}/unet")
    encoder = CLIPTextModel.from_pretrained(f"{model}/text_encoder")
    state, alphas = StableDiffusionPipeline.lora_state_dict(adapter)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
    StableDiffusionPipeline.load_lora_into_text_encoder(state, alphas, encoder)
    return unet.double().eval(), encoder.double().eval(), complaints.texts


def applied(module):
    """Elements of peft's factors."""
    return sum(p.numel() for name, p in module.named_parameters() if ".lora_A." in name or ".lora_B." in name)


@torch.no_grad()
def main():
    program, model, adapter = sys.argv[1:]
    tensors = load_file(adapter)
    wanted = {
        part: sum(t.numel() for k, t in tensors.items() if k.startswith(prefix) and ".lora_" in k)
        for part, prefix in (("unet", "lora_unet_"), ("text encoder", "lora_te_"))
    }
    width = json.loads(pathlib.Path(model, "text_encoder", "config.json").read_text())["hidden_size"]
    unet, encoder, complaints = load(model, adapter)
    failed = bool(complaints)
    for text in complaints:
        print("diffusers:", text)
    for part, module in (("unet", unet), ("text encoder", encoder)):
        print(f"{part}: {applied(module)} of {wanted[part]} values in peft's layers")
        failed |= applied(module) != wanted[part]

    torch.manual_seed(1)
    inputs = {
        "sample": torch.randn(2, 4, 8, 10),
        "timestep": torch.tensor([981.0, 13.0]),
        "encoder_hidden_states": torch.randn(2, 77, width),
    }
    expected = unet(*(inputs[k].double() for k in ("sample", "timestep", "encoder_hidden_states"))).sample
    ids = torch.full((2, 77), 49407)
    ids[:, 0] = 49406
    ids[:, 1:20] = torch.randint(0, 49000, (2, 19))
    checks = {
        "unet": (inputs, "noise_pred", expected),
        "text-encoder": ({"input_ids": ids}, "last_hidden_state", encoder(ids).last_hidden_state),
    }
    for part, (given, name, reference) in checks.items():
        error = relative(probe(program, part, model, adapter, given)[name], reference)
        effect = relative(probe(program, part, model, None, given)[name], reference)
        print(f"{part} with the adapter: {error:.2e} (limit {LIMIT:.0e}); the adapter changes it by {effect:.2e}")
        failed |= not error <= LIMIT
    raise SystemExit(failed)


main()
