"""Write the trained networks as one checkpoint in the layout of the original Stable Diffusion v1 files.

`python export.py STATE OUT.safetensors` takes the averaged weights from STATE/unet128.pt, writes fp16, reads the
file back with the converters of diffusers and compares every tensor.
"""
import argparse
import os

import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file

from parts import TOKENS, alphas_cumprod, make_text_encoder, make_unet, make_vae, whole_table

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_ENDS = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
             "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(module):
    """The original name of a U-Net module that diffusers calls `module`."""
    if module in UNET_ENDS:
        return UNET_ENDS[module]
    part = module.split(".")
    if part[0] == "mid_block":
        kind, j, tail = part[1], int(part[2]), part[3:]
        block = f"middle_block.{2 * j if kind == 'resnets' else 1}"
    else:
        side, i, kind, j, tail = part[0], int(part[1]), part[2], int(part[3]), part[4:]
        if kind == "downsamplers":
            return f"input_blocks.{3 + 3 * i}.0.op"
        if kind == "upsamplers":
            return f"output_blocks.{2 + 3 * i}.{2 if i else 1}.conv"
        number = 1 + 3 * i + j if side == "down_blocks" else 3 * i + j
        block = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
    if kind == "resnets":
        tail = [RESNET[tail[0]]]
    return ".".join([block, *tail])


def vae_name(module):
    """The original name of an autoencoder module that diffusers calls `module`."""
    part = module.split(".")
    if part[0] in ("quant_conv", "post_quant_conv"):
        return module
    coder, tail = part[0], part[1:]
    if tail[0] == "conv_norm_out":
        tail = ["norm_out"]
    elif tail[0] == "mid_block":
        where = f"block_{int(tail[2]) + 1}" if tail[1] == "resnets" else "attn_1"
        rest = ".".join(tail[3:])
        tail = ["mid", where, VAE_ATTENTION.get(rest, rest)]
    elif tail[0] in ("down_blocks", "up_blocks"):
        down = tail[0] == "down_blocks"
        level = tail[1] if down else str(3 - int(tail[1]))
        kind = {"resnets": ["block", tail[3]], "downsamplers": ["downsample"], "upsamplers": ["upsample"]}[tail[2]]
        tail = ["down" if down else "up", level, *kind, tail[4]]
    return ".".join([coder, *tail]).replace("conv_shortcut", "nin_shortcut")


def rename(state, prefix, rule):
    """A state dict under its original names."""
    out = {}
    for key, value in state.items():
        module, kind = key.rsplit(".", 1)
        name = rule(module)
        if prefix == VAE and ".attn_1." in name and value.ndim == 2:
            value = value[:, :, None, None]
        out[f"{prefix}{name}.{kind}"] = value
    return out


def to_original(unet, text, vae):
    """All tensors of a single-file checkpoint, weights in fp16."""
    plain = {k.removeprefix("text_model."): v for k, v in text.items() if not k.endswith("position_ids")}
    tensors = rename(unet, UNET, unet_name) | rename(vae, VAE, vae_name) | {TEXT + k: v for k, v in plain.items()}
    tensors = {k: v.detach().half().contiguous() for k, v in tensors.items()}
    tensors[TEXT + "embeddings.position_ids"] = torch.arange(TOKENS)[None]
    tensors["alphas_cumprod"] = alphas_cumprod()
    return tensors


def load(path):
    """U-Net, text encoder and autoencoder from a single file, by diffusers' own converters."""
    tensors = {k: v.float() if v.dtype == torch.float16 else v for k, v in load_file(path).items()}
    unet, text, vae = make_unet(), make_text_encoder(), make_vae()
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(tensors), unet.config))
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(tensors), vae.config))
    own = text.state_dict()
    prefix = "text_model." if next(iter(own)).startswith("text_model.") else ""
    text.load_state_dict({prefix + k.removeprefix(TEXT): v for k, v in tensors.items()
                          if k.startswith(TEXT) and not k.endswith("position_ids")})
    return unet.eval(), text.eval(), vae.eval()


def verify(path, states):
    """Check that reading the file back gives the networks that went in, to fp16 precision."""
    for model, state in zip(load(path), states):
        own = model.state_dict()
        for key, value in state.items():
            if key in own and not torch.equal(own[key], value.half().float()):
                raise SystemExit(f"{path}: {key} came back different")
        if any(not torch.isfinite(v).all() for v in own.values()):
            raise SystemExit(f"{path}: a weight is not finite in fp16")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("state")
    ap.add_argument("out")
    ap.add_argument("--size", type=int, default=128, help="64: the state after the close-ups")
    a = ap.parse_args()
    saved = torch.load(os.path.join(a.state, f"unet{a.size}.pt"))
    states = saved["ema_unet"], whole_table(saved["ema_text"]), torch.load(os.path.join(a.state, "vae_normal.pt"))
    save_file(to_original(*states), a.out + ".tmp", metadata={"title": "vulora demo model", "step": str(saved["step"])})
    verify(a.out + ".tmp", states)
    os.chmod(a.out + ".tmp", 0o644)
    os.replace(a.out + ".tmp", a.out)
    print(f"{a.out}: step {saved['step']}, {os.path.getsize(a.out) / 1e6:.1f} MB, read back and compared")


if __name__ == "__main__":
    main()
