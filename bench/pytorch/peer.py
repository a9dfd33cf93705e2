"""One part of Stable Diffusion 1.5 in PyTorch, diffusers and PEFT on the processor: the peer of `vulora bench --json`, with its options
and its output. bench/run.py calls it.

    python bench/pytorch/peer.py --model FILE --part unet|train-step|vae-decode --resolution 512 --precision fp32|bf16 --setting NAME

The file is a single-file checkpoint in the original layout, of any width; no network is needed. `--settings` prints the names of the
settings there are for a part and a precision: memory format, and for bf16 whether weights are kept so or cast by autocast.
"""

import argparse
import gc
import json
import pathlib
import re
import resource
import statistics
import time
from contextlib import nullcontext, suppress

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from peft import LoraConfig
from safetensors import safe_open

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TOKENS, SCALING = 77, 0.18215
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # as `vulora --targets attn`


def settings(precision):
    layouts = "default", "channels-last"
    return [*layouts] if precision == "fp32" else [f"{layout}, {way}" for layout in layouts for way in ("autocast", "bf16 weights")]


def read_part(path, prefix):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}


def unet_config(tensors):
    """Of SD1.5's topology; widths as the file has them, 8 heads, which no file says."""
    channels = tuple(len(tensors[f"{UNET}input_blocks.{i}.0.out_layers.3.bias"]) for i in (1, 4, 7, 10))
    context = tensors[f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    return {"block_out_channels": channels, "cross_attention_dim": context, "attention_head_dim": 8}


def vae_config(tensors):
    channels = tuple(len(tensors[f"{VAE}encoder.down.{i}.block.0.conv2.bias"]) for i in range(4))
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return {"block_out_channels": channels, "latent_channels": 4, "layers_per_block": 2, **kinds}


def load(path, part, dtype):
    """The model of a part, made without initial weights and given the file's own, so that loading needs little memory of its own."""
    kind, prefix, config, convert = (
        (AutoencoderKL, VAE, vae_config, convert_ldm_vae_checkpoint)
        if part == "vae-decode"
        else (UNet2DConditionModel, UNET, unet_config, convert_ldm_unet_checkpoint)
    )
    tensors = read_part(path, prefix)
    with torch.device("meta"):
        model = kind(**config(tensors))
    state = convert(tensors, model.config)
    tensors.clear()
    for key in list(state):
        state[key] = state[key].to(dtype)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)


def make_evaluation(model, latents, width, cast):
    context, timestep = torch.randn(latents.shape[0], TOKENS, width, dtype=model.dtype), torch.tensor(500)

    def run():
        with torch.inference_mode(), cast():
            model(latents, timestep, context, return_dict=False)

    return run


def make_decoding(model, latents, cast):
    def run():
        with torch.inference_mode(), cast():
            model.decode(latents / SCALING, return_dict=False)

    return run


def make_training(model, latents, width, cast, rank):
    """Noising, forward, backward and AdamW, as `vulora bench --part train-step`."""
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    model.train()
    adamw = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    latents = latents.float()
    context = torch.randn(latents.shape[0], TOKENS, width, dtype=model.dtype)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = torch.cumprod(1 - betas, 0)

    def run():
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (latents.shape[0],))
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        with cast():
            predicted = model(noisy.to(context.dtype), t, context, return_dict=False)[0]
        F.mse_loss(predicted.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

    return run


def make_run(a):
    channels_last = a.setting.startswith("channels-last")
    dtype = torch.bfloat16 if a.setting.endswith("bf16 weights") else torch.float32
    autocast = a.precision == "bf16" and (a.part == "train-step" or dtype == torch.float32)  # the adapter's fp32 meets bf16
    cast = (lambda: torch.autocast("cpu", torch.bfloat16)) if autocast else nullcontext
    model = load(a.model, a.part, dtype).eval()
    width, height = a.resolution
    latents = torch.randn(a.batch_size, 4, height // 8, width // 8, dtype=dtype)
    if channels_last:
        model, latents = model.to(memory_format=torch.channels_last), latents.contiguous(memory_format=torch.channels_last)
    if a.part == "vae-decode":
        return make_decoding(model, latents, cast)
    context = model.config.cross_attention_dim
    if a.part == "unet":
        return make_evaluation(model, latents, context, cast)
    return make_training(model, latents, context, cast, a.rank)


def forget_peak():
    """Peak memory from here on: what loading took is no property of PyTorch, but of how this script loads. Linux only."""
    gc.collect()
    with suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_bytes():
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def size(text):
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no WxH")
    return int(found[1]), int(found[2] or found[1])


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--part", required=True, choices=("unet", "train-step", "vae-decode"))
    p.add_argument("--resolution", type=size, default=(512, 512))
    p.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    p.add_argument("--setting", default="default")
    p.add_argument("--settings", action="store_true", help="print the settings there are")
    p.add_argument("--batch-size", type=int, default=1)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--repeats", type=int, default=3)
    return p.parse_args()


def main():
    a = options()
    if a.settings:
        return print(json.dumps(settings(a.precision)))
    if a.setting not in settings(a.precision):
        raise SystemExit(f"no setting {a.setting}; there are {settings(a.precision)}")
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)
    run, runs = make_run(a), []
    forget_peak()
    run()
    for _ in range(a.repeats):
        start = time.perf_counter()
        run()
        runs.append(time.perf_counter() - start)
    known = {"part": a.part, "device": "PyTorch " + torch.__version__, "precision": a.precision, "threads": a.threads}
    measured = {"runs_s": runs, "median_s": statistics.median(runs), "peak_rss_bytes": peak_bytes()}
    print(json.dumps({**known, "setting": a.setting, "resolution": a.resolution, "batch_size": a.batch_size, **measured}))


if __name__ == "__main__":
    main()
