"""A small Stable Diffusion 1.5 as a diffusers folder, with random weights: what the checking scripts here run on.

    python tests/reference/random_model.py FOLDER [SEED]

Needs torch, diffusers and transformers. The tokenizer is not in it: the program's own is CLIP's.
"""

import json
import pathlib
import sys

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 64  # of the text encoder


def make_unet():
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128), cross_attention_dim=WIDTH, attention_head_dim=8, sample_size=8
    )


def make_vae():
    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=64,
    )


def make_text_encoder():
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act="quick_gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return CLIPTextModel(config)


def make_scheduler():
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    parts = {"unet": make_unet(), "vae": make_vae(), "text_encoder": make_text_encoder(), "scheduler": make_scheduler()}
    index = {"_class_name": "StableDiffusionPipeline"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "transformers" if name == "text_encoder" else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main()
