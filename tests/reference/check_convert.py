"""Loads what `vulora convert` writes into PEFT and diffusers, and compares the models' outputs.

    python tests/reference/check_convert.py VULORA MODEL

VULORA is the program, MODEL a diffusers folder (tests/reference/random_model.py makes one). PEFT makes adapters with
random values; they go to kohya's spelling and back, to diffusers', and to full differences. Exits with 1 when a tensor
is not used or an output differs.
"""

import copy
import pathlib
import subprocess
import sys
import tempfile
import warnings

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from model_parts import relative
from peft import BOFTConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

LIMIT = 5e-5
LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "time_emb_proj"]
CONV = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
LORA = dict(r=4, lora_alpha=3, rank_pattern={"to_k": 6, "fc1": 2}, alpha_pattern={"to_v": 5, "q_proj": 8})
CONFIGS = {
    "lora": (LoraConfig, LORA, LINEAR + CONV, TEXT),
    "rslora": (LoraConfig, dict(r=4, lora_alpha=4, use_rslora=True), LINEAR, TEXT),
    "dora": (LoraConfig, dict(r=4, lora_alpha=2, use_dora=True), LINEAR + CONV, TEXT),
    "loha": (LoHaConfig, dict(r=3, alpha=2, alpha_pattern={"to_q": 5}), LINEAR + CONV, TEXT),
    "loha_tucker": (LoHaConfig, dict(r=3, alpha=2, use_effective_conv2d=True), LINEAR + CONV, TEXT),
    "lokr": (LoKrConfig, dict(r=3, alpha=2, decompose_factor=4), LINEAR + CONV, TEXT),
    "lokr_whole": (LoKrConfig, dict(r=500, alpha=250), LINEAR + CONV, TEXT),
    "lokr_both": (LoKrConfig, dict(r=1, alpha=2, decompose_both=True), LINEAR + CONV, TEXT),
    "ia3": (IA3Config, dict(), ["to_k", "to_v", "ff.net.2"], ["fc2"]),
    "ia3_bias": (IA3Config, dict(), ["to_k", "to_out.0"], TEXT),  # PEFT scales biases too, which only differences can say
    "oft": (OFTConfig, dict(r=0, oft_block_size=8), LINEAR, TEXT),
    "boft": (BOFTConfig, dict(boft_block_size=4, boft_n_butterfly_factor=2), LINEAR + ["conv1"], TEXT),
}
ONLY_FULL = ("ia3_bias", "oft", "boft")


def convert(program, source, out, *options):
    subprocess.run([program, "convert", source, "--output", out, "--quiet", *options], check=True)


def randomize(model):
    torch.manual_seed(7)
    for name, p in model.named_parameters():
        if not p.requires_grad or not any(kind in name for kind in ("lora_", "hada_", "lokr_", "ia3_", "oft_")):
            continue
        if any(factor in name for factor in ("boft_s", "ia3_", "magnitude")):  # these multiply
            p.data = p.data * (1 + 0.1 * torch.randn_like(p))
        else:
            p.data = (0.3 if "hada" in name or "lokr" in name else 0.1) * torch.randn_like(p)


def outputs(unet, encoder, inputs, ids):
    with torch.no_grad():
        states = unet.double()(*(t.double() for t in inputs)).sample
        return states, encoder.double()(input_ids=ids).last_hidden_state


def probe(program, model, adapter, inputs, ids):
    with tempfile.TemporaryDirectory() as folder:
        results = []
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), inputs))
        runs = ("unet", named, "noise_pred"), ("text-encoder", {"input_ids": ids}, "last_hidden_state")
        for part, given, name in runs:
            save_file(given, f"{folder}/in.safetensors")
            command = [program, "probe", part, "--model", model, "--input", f"{folder}/in.safetensors"]
            command += ["--output", f"{folder}/out.safetensors", "--lora", adapter, "--device", "cpu", "--quiet"]
            subprocess.run(command, check=True)
            results.append(load_file(f"{folder}/out.safetensors")[name].double())
        return results


def load_diffusers(path, unet, encoder):
    state, alphas = StableDiffusionPipeline.lora_state_dict(path)
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
    StableDiffusionPipeline.load_lora_into_text_encoder(state, alphas, encoder)
    return unet, encoder


def check(name, what, got, right, bare):
    errors = [relative(a, b) for a, b in zip(got, right)]
    effects = [relative(a, b) for a, b in zip(bare, right)]
    ok = all(e <= LIMIT for e in errors)
    effect = f"(effect {effects[0]:.1e} {effects[1]:.1e})"
    print(f"{name:12} {what:24} {errors[0]:.1e} {errors[1]:.1e} {effect} {'' if ok else 'FAILED'}")
    return ok


def main():
    program, model = sys.argv[1:3]
    base_unet = UNet2DConditionModel.from_pretrained(f"{model}/unet").eval()
    base_encoder = CLIPTextModel.from_pretrained(f"{model}/text_encoder").eval()
    torch.manual_seed(1)
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([981.0, 13.0]), torch.randn(2, 77, base_encoder.config.hidden_size))
    ids = torch.full((2, 77), 49407)
    ids[:, 0] = 49406
    ids[:, 1:20] = torch.randint(0, 49000, (2, 19))
    fresh = lambda: (copy.deepcopy(base_unet), copy.deepcopy(base_encoder))
    bare = outputs(*fresh(), inputs, ids)
    failed = False
    for name, (config, arguments, unet_targets, text_targets) in CONFIGS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            models = []
            for part, targets, base in zip(("unet", "text_encoder"), (unet_targets, text_targets), fresh()):
                if config is IA3Config:
                    arguments = {"feedforward_modules": [t for t in targets if t in ("ff.net.2", "fc2")]}
                adapted = get_peft_model(base, config(target_modules=targets, **arguments))
                randomize(adapted)
                adapted.save_pretrained(folder / "in" / part)
                models.append(adapted.eval())
            right = outputs(*models, inputs, ids)
            kohya, theirs, full = (folder / f"{n}.safetensors" for n in ("kohya", "diffusers", "full"))
            back = folder / "back"
            convert(program, folder / "in", full, "--kind", "full", "--model", model)
            failed |= not check(name, "full in vulora", probe(program, model, full, inputs, ids), right, bare)
            if name in ONLY_FULL:
                continue
            convert(program, folder / "in", kohya)
            failed |= not check(name, "kohya in vulora", probe(program, model, kohya, inputs, ids), right, bare)
            convert(program, kohya, back, "--format", "peft")
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                parts = zip(fresh(), ("unet", "text_encoder"))
                loaded = [PeftModel.from_pretrained(base, back / part).eval() for base, part in parts]
            failed |= not check(name, "peft in PEFT", outputs(*loaded, inputs, ids), right, bare)
            if config is LoraConfig:
                convert(program, kohya, theirs, "--format", "diffusers")
                loaded = load_diffusers(theirs, *fresh())
                failed |= not check(name, "diffusers in diffusers", outputs(*loaded, inputs, ids), right, bare)
            if name == "rslora":  # where alphas differ diffusers 0.42 takes the commonest for all of the U-Net
                loaded = load_diffusers(kohya, *fresh())
                failed |= not check(name, "kohya in diffusers", outputs(*loaded, inputs, ids), right, bare)
    raise SystemExit(failed)


main()
