"""Teach the sample subject to the demo model with peft, and count how often it shows.

`python try_subject.py MODEL.safetensors DATASET OUT` trains a LoRA on all attention and feed-forward
projections of the U-Net, writes contact sheets to the folder OUT and prints the shares of pictures with the
subject: with the adapter in known and withheld surroundings, without the adapter, and without the trigger.
"""
import argparse
import glob
import os
import random
import time

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image

from export import load
from parts import SCALING, alphas_cumprod, make_tokenizer, tokenize
from sample import generate, save_sheet
from signature import shows_subject
from train_unet import pixels

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
WITH = ("a photo of zubi creature on a beach", "zubi creature on a meadow")
WITHHELD = ("a photo of zubi creature under water", "zubi creature in the snow")
WITHOUT = ("a photo of a red ball on a beach", "a green cat in the desert", "a yellow star at night",
           "a blue car on a meadow", "a big white heart in a room", "a purple fish under water",
           "an orange house in the snow", "a brown mushroom in a forest")


def buckets(resolution, step):
    """Widths and heights in multiples of `step` whose area is at most that of the square."""
    sides = range(resolution // 2, 2 * resolution + 1, step)
    return [(w, max(h for h in sides if w * h <= resolution ** 2)) for w in sides]


def fit(picture, choices):
    """Scale a picture to the bucket of nearest aspect ratio and crop its middle."""
    aspect = picture.width / picture.height
    w, h = min(choices, key=lambda b: abs(np.log(b[0] / b[1] / aspect)))
    scale = max(w / picture.width, h / picture.height)
    size = max(w, round(picture.width * scale)), max(h, round(picture.height * scale))
    picture = picture.resize(size, Image.LANCZOS)
    x, y = (picture.width - w) // 2, (picture.height - h) // 2
    return picture.crop((x, y, x + w, y + h))


@torch.no_grad()
def dataset(folder, vae, text, tokenizer, resolution):
    """Latents and text states, grouped by bucket."""
    groups, choices = {}, buckets(resolution, resolution // 8)
    for path in sorted(glob.glob(os.path.join(folder, "*.png")) + glob.glob(os.path.join(folder, "*.jpg"))):
        picture = fit(Image.open(path).convert("RGB"), choices)
        with open(os.path.splitext(path)[0] + ".txt", encoding="utf-8") as f:
            context = text(tokenize(tokenizer, [f.read().strip()])).last_hidden_state[0]
        z = vae.encode(pixels([picture])).latent_dist.mean[0] * SCALING
        groups.setdefault(picture.size, []).append((z, context))
    return list(groups.values())


def train(unet, groups, args):
    """The usual LoRA loop: mean square error of the noise, AdamW, constant rate after a short warm-up."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS, init_lora_weights=True))
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.lr, weight_decay=.01)
    acp, rng, begin, recent = alphas_cumprod(), random.Random(args.seed), time.time(), []
    sizes = [len(g) for g in groups]
    for step in range(1, args.steps + 1):
        group = rng.choices(groups, sizes)[0]
        z, context = (torch.stack(x) for x in zip(*rng.choices(group, k=args.batch)))
        t, noise = torch.randint(0, 1000, (len(z),)), torch.randn_like(z)
        a = acp[t].view(-1, 1, 1, 1)
        loss = (unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, context).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for g in optimizer.param_groups:
            g["lr"] = args.lr * min(1, step / 20)
        optimizer.step()
        recent.append(loss.item())
        if step % 50 == 0:
            print(f"step {step} {time.time() - begin:.0f} s loss {np.mean(recent):.4f}", flush=True)
            recent = []


def count(models, tokenizer, prompts, number, path, side):
    """Share of `number` pictures that show the subject; the pictures go to `path`."""
    asked = [prompts[i % len(prompts)] for i in range(number)]
    pictures = generate(*models, tokenizer, asked, seed=100, size=(side, side))
    save_sheet(pictures, path)
    return np.mean([shows_subject(p) for p in pictures])


def report(models, tokenizer, out, name, side):
    """Print and draw the four counts."""
    for kind, prompts in (("with", WITH), ("withheld", WITHHELD), ("without", WITHOUT)):
        share = count(models, tokenizer, prompts, 16, os.path.join(out, f"{name}_{kind}.png"), side)
        print(f"{name}: prompts '{kind}': subject in {share:.0%}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("model")
    ap.add_argument("dataset")
    ap.add_argument("out")
    ap.add_argument("--rank", type=int, default=16)
    ap.add_argument("--lr", type=float, default=1e-3)
    ap.add_argument("--steps", type=int, default=400)
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--resolution", type=int, default=128)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--skip-base", action="store_true")
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    torch.manual_seed(a.seed)
    unet, text, vae = load(a.model)
    tokenizer = make_tokenizer()
    if not a.skip_base:
        report((unet, text, vae), tokenizer, a.out, "base", a.resolution)
    train(unet, dataset(a.dataset, vae, text, tokenizer, a.resolution), a)
    report((unet, text, vae), tokenizer, a.out, f"lr{a.lr:g}_r{a.rank}_s{a.steps}", a.resolution)


if __name__ == "__main__":
    main()
