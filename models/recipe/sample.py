"""Generate pictures from captions with a checkpoint: `python sample.py MODEL.safetensors OUT.png [PROMPT ...]`.

Without prompts: 16 captions of the world that a seed picks.  DDIM, 25 steps, classifier-free guidance.
"""
import argparse
import random

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image

from parts import SCALING, tokenize
from world import scene


def scheduler():
    """DDIM on Stable Diffusion's schedule."""
    return DDIMScheduler(num_train_timesteps=1000, beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear",
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon")


@torch.no_grad()
def generate(unet, text, vae, tokenizer, prompts, seed=0, steps=25, guidance=6.0, size=(128, 128)):
    """One picture for each prompt, as uint8 [N, H, W, 3]."""
    ids = tokenize(tokenizer, list(prompts) + [""] * len(prompts))
    context = text(ids).last_hidden_state.float()
    noise = torch.Generator().manual_seed(seed)
    z = torch.randn(len(prompts), 4, size[1] // 8, size[0] // 8, generator=noise)
    ddim = scheduler()
    ddim.set_timesteps(steps)
    for t in ddim.timesteps:
        yes, no = unet(torch.cat([z, z]), t, context).sample.float().chunk(2)
        z = ddim.step(no + guidance * (yes - no), t, z).prev_sample
    x = vae.decode(z / SCALING).sample.float()
    return x.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()


def save_sheet(pictures, path, columns=8):
    """Write pictures of one size side by side."""
    rows = [np.concatenate(list(pictures[i:i + columns]), 1) for i in range(0, len(pictures), columns)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)


def captions_of(count, seed, side=128):
    """Captions the world gives with this seed."""
    rng = random.Random(seed)
    return [scene(rng, side, side)[1] for _ in range(count)]


def contact_sheet(unet, text, vae, tokenizer, path, seed, count=16, side=128):
    """Generate `count` captions of the world; the captions go to a text file beside the sheet."""
    captions = captions_of(count, seed, side)
    save_sheet(generate(unet, text, vae, tokenizer, captions, seed, size=(side, side)), path)
    with open(path[:-4] + ".txt", "w", encoding="utf-8") as f:
        f.write("\n".join(captions) + "\n")


def main():
    from export import load
    from parts import make_tokenizer
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("model")
    ap.add_argument("out")
    ap.add_argument("prompts", nargs="*")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--steps", type=int, default=25)
    ap.add_argument("--guidance", type=float, default=6.0)
    ap.add_argument("--size", default="128x128", help="WIDTHxHEIGHT")
    a = ap.parse_args()
    unet, text, vae = load(a.model)
    prompts = a.prompts or captions_of(16, a.seed)
    print("\n".join(prompts))
    size = tuple(int(n) for n in a.size.split("x"))
    save_sheet(generate(unet, text, vae, make_tokenizer(), prompts, a.seed, a.steps, a.guidance, size), a.out)


if __name__ == "__main__":
    main()
