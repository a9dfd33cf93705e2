"""A Stable Diffusion 1.5 at full size with random weights, as one fp16 file in the original layout: timing needs no real weights.

    python bench/pytorch/random_sd15.py OUT.safetensors [SEED]

2.1 GB; takes 7 GB of memory while it is made. Needs torch, diffusers and transformers (bench/README.md).
"""

import pathlib
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "models" / "recipe"))
from export import to_original  # noqa: E402: the demo model's recipe knows the original names

COMMON = {"layers_per_block": 2, "norm_num_groups": 32}
UNET = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "latent_channels": 4,
    "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu"}


def main():
    out = sys.argv[1]
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    states = (
        UNet2DConditionModel(**UNET, **COMMON).half().state_dict(),
        CLIPTextModel(CLIPTextConfig(**TEXT)).half().state_dict(),
        AutoencoderKL(**VAE, **COMMON).half().state_dict(),
    )
    save_file(to_original(*states), out)
    print(out, pathlib.Path(out).stat().st_size, "bytes")


if __name__ == "__main__":
    main()
