"""Train the autoencoder on crops of the procedural world, small ones and whole pictures in turn.

The time is given, not the number of steps: the learning rate follows a cosine over `--minutes`.  A run that
was interrupted goes on from its own checkpoint.
"""
import argparse
import math
import os
import random
import time

import numpy as np
import torch
from PIL import Image

from parts import begin_linear, make_vae
from world import scene

SIDES = (64, 128)


class Crops:
    """Random crops of a pool of scenes that is renewed a few scenes at a time."""

    def __init__(self, seed, size=1500, renew=2):
        self.rng = random.Random(seed)
        self.renew = renew
        self.pool = [self._draw() for _ in range(size)]

    def _draw(self):
        return np.asarray(scene(self.rng)[0])

    def _one(self, side):
        rng = self.rng
        picture = rng.choice(self.pool)
        y, x = rng.randint(0, 128 - side), rng.randint(0, 128 - side)
        crop = picture[y:y + side, x:x + side]
        if rng.random() < .5:
            crop = crop[:, ::-1]
        if rng.random() < .3:                     # colours the world lacks
            crop = crop[:, :, rng.sample(range(3), 3)]
            if rng.random() < .3:
                crop = 255 - crop
        return crop

    def batch(self, count, side):
        for _ in range(self.renew):
            self.pool[self.rng.randrange(len(self.pool))] = self._draw()
        x = np.stack([self._one(side) for _ in range(count)])
        return torch.from_numpy(x).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def loss_of(vae, x, kl_weight):
    """L1 and square of pixels, L1 of their differences, and the KL term; returns the sum and its parts."""
    posterior = vae.encode(x).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    z = mean + torch.exp(.5 * logvar) * torch.randn_like(mean)
    y = vae.decode(z).sample.float()
    d = y - x
    pixel = d.abs().mean()
    edge = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    kl = .5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
    return pixel + 2 * d.square().mean() + 1.5 * edge + kl_weight * kl, (pixel.item(), edge.item(), kl.item())


@torch.no_grad()
def comparison(vae, path, seed=7):
    """Write 8 whole scenes over their reconstructions."""
    rng = random.Random(seed)
    pictures = [np.asarray(scene(rng)[0]) for _ in range(8)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    y = vae.decode(vae.encode(x).latent_dist.mean).sample
    y = y.clamp(-1, 1).add(1).mul(127.5).byte().permute(0, 2, 3, 1).numpy()
    Image.fromarray(np.concatenate([np.concatenate(pictures, 1), np.concatenate(list(y), 1)], 0)).save(path)


def rate(progress, step, peak, warm=100):
    """Warm-up over the first steps, then a cosine over the time, down to 2 % of the peak."""
    return peak * min(1, (step + 1) / warm) * (.02 + .98 * .5 * (1 + math.cos(math.pi * min(1, progress))))


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("state", help="folder for checkpoints")
    ap.add_argument("--minutes", type=float, default=30)
    ap.add_argument("--batch", type=int, default=8, help="of the small crops; whole pictures: a quarter")
    ap.add_argument("--lr", type=float, default=4e-4)
    ap.add_argument("--kl", type=float, default=2e-4)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    os.makedirs(a.state, exist_ok=True)
    path = os.path.join(a.state, "vae.pt")
    torch.manual_seed(a.seed)
    torch.set_flush_denormal(True)
    vae = begin_linear(make_vae())
    optimizer = torch.optim.AdamW(vae.parameters(), a.lr, betas=(.9, .99), weight_decay=1e-4)
    step, used = 0, 0.0
    if os.path.exists(path):
        saved = torch.load(path)
        vae.load_state_dict(saved["vae"])
        optimizer.load_state_dict(saved["optimizer"])
        step, used = saved["step"], saved["used"]
    crops = Crops(a.seed + step)
    shapes = [(a.batch * 64 ** 2 // side ** 2, side) for side in SIDES]
    total, last, saved_at, recent = a.minutes * 60, time.time(), used, []
    while used < total:
        progress = used / total
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, step, a.lr)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, parts = loss_of(vae, crops.batch(*(shapes[step % 2])), a.kl * min(1, step / 500))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        recent.append(parts)
        now = time.time()
        used, last = used + now - last, now
        if step % 50 == 0:
            mean = np.mean(recent, 0)
            print(f"step {step} {used / 60:.1f} min L1 {mean[0]:.4f} edge {mean[1]:.4f} kl {mean[2]:.3f}", flush=True)
            recent = []
        if used - saved_at > 100 or used >= total:
            saved_at = used
            torch.save({"vae": vae.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step, "used": used}, path + ".tmp")
            os.replace(path + ".tmp", path)
            comparison(vae, os.path.join(a.state, "vae.png"))
            last = time.time()


if __name__ == "__main__":
    main()
