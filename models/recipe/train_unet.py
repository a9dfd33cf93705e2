"""Train the U-Net and the text encoder together, from nothing, on latents of the procedural world.

The time is given, not the number of steps: the learning rate follows a cosine over `--minutes`.  A run that
was interrupted goes on from its own checkpoint.  First `--size 64`, on close-ups, where a step costs a fifth, then
`--size 128 --start STATE/unet64.pt` on whole scenes: objects have the same size in pixels.  The pool of encoded
scenes grows while training runs.
"""
import argparse
import copy
import os
import random
import time

import numpy as np
import torch

from parts import (SCALING, UsedWords, alphas_cumprod, begin_silent, make_text_encoder,
                   make_tokenizer, make_unet, make_vae, tokenize)
from sample import contact_sheet
from train_vae import rate
from warm_text import warm_up
from world import scene

SHAPES = {128: ((128, 128), (160, 112), (112, 160)), 64: ((64, 64), (80, 56), (56, 80))}
SHARES = (.84, .08, .08)


@torch.no_grad()
def normalise(vae, count=100, seed=99):
    """Fold the latents' mean and spread into the 1x1 convolutions, so that SD's 0.18215 is the right factor."""
    rng = random.Random(seed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = vae.encode(pixels([scene(rng)[0] for _ in range(count)])).latent_dist.mean.float()
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    gain = 1 / (std * SCALING)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.bias[4:] += 2 * gain.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight /= gain.view(1, 4, 1, 1)
    return vae


def pixels(pictures):
    """PIL pictures of one size as a tensor in -1..1."""
    x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
    return x.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


class Pool:
    """Encoded scenes with token ids, one list for each picture shape; grows up to a limit, then is renewed."""

    def __init__(self, vae, tokenizer, seed, shapes, limit=60000):
        self.vae, self.tokenizer, self.rng, self.limit = vae, tokenizer, random.Random(seed), limit
        self.shapes = shapes
        self.latents, self.ids = [[] for _ in shapes], [[] for _ in shapes]

    @torch.no_grad()
    def grow(self, count, shape):
        width, height = self.shapes[shape]
        pictures, captions = zip(*[scene(self.rng, width, height) for _ in range(count)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.vae.encode(pixels(pictures)).latent_dist.mean
        z = (z.float() * SCALING).half()
        for latent, ids in zip(z, tokenize(self.tokenizer, captions)):
            if len(self.latents[shape]) < self.limit * SHARES[shape]:
                self.latents[shape].append(latent)
                self.ids[shape].append(ids)
            else:
                i = self.rng.randrange(len(self.latents[shape]))
                self.latents[shape][i], self.ids[shape][i] = latent, ids

    def save(self, path):
        torch.save((self.latents, self.ids), path + ".tmp")
        os.replace(path + ".tmp", path)

    def batch(self, count):
        shape = self.rng.choices(range(len(SHARES)), SHARES)[0]
        pick = [self.rng.randrange(len(self.latents[shape])) for _ in range(count)]
        z = torch.stack([self.latents[shape][i] for i in pick]).float()
        return z, torch.stack([self.ids[shape][i] for i in pick])


def spoil(ids, empty, rng):
    """Drop one caption in ten (guidance), put a random word into one in twelve (unknown words are no surprise)."""
    ids = ids.clone()
    for row in ids:
        dice = rng.random()
        if dice < .1:
            row.copy_(empty)
        elif dice < .1 + .08:
            at = rng.randint(1, int((row == 49407).nonzero()[0]))
            row[at + 1:] = row[at:-1].clone()
            row[at] = rng.randrange(512, 49406)
    return ids


def weights():
    """Loss weight for each timestep: that of the v-loss, limited as in min-SNR."""
    snr = alphas_cumprod() / (1 - alphas_cumprod())
    return torch.clamp(snr + 1, max=5.0) / snr


@torch.no_grad()
def follow(ema, model, decay):
    """Move the averaged copy towards the model."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


def parameter_groups(unet, text, lr):
    """Weight decay for matrices of the U-Net only: rows of unused words must stay as they are."""
    big = [p for p in unet.parameters() if p.ndim > 1]
    rest = [p for p in unet.parameters() if p.ndim <= 1] + list(text.parameters())
    return [{"params": big, "lr": lr, "weight_decay": .01}, {"params": rest, "lr": lr, "weight_decay": 0.0}]


class Run:
    """Everything a run has to remember."""

    def __init__(self, args):
        self.args = args
        torch.manual_seed(args.seed)
        torch.set_flush_denormal(True)
        self.tokenizer = make_tokenizer()
        self.unet, self.text = begin_silent(make_unet()), make_text_encoder()
        words = self.text.embeddings if hasattr(self.text, "embeddings") else self.text.text_model.embeddings
        words.token_embedding = UsedWords(words.token_embedding, self._vocabulary())
        self.unet = self.unet.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.unet, self.text, args.lr), betas=(.9, .99), fused=True)
        self.ema_unet, self.ema_text = copy.deepcopy(self.unet), copy.deepcopy(self.text)
        self.step, self.used = 0, 0.0
        self.path = os.path.join(args.state, f"unet{args.size}.pt")
        if os.path.exists(self.path):
            self._load(torch.load(self.path))
        elif args.start:
            self._load(torch.load(args.start))
            self.step, self.used = 0, 0.0
        self.vae = self._autoencoder()
        self.rng = random.Random(args.seed + self.step)
        self.acp, self.weight = alphas_cumprod(), weights()
        self.empty = tokenize(self.tokenizer, [""])[0]

    def _autoencoder(self):
        """The trained autoencoder with its latents normalised (once, then from the file)."""
        path, vae = os.path.join(self.args.state, "vae_normal.pt"), make_vae()
        if os.path.exists(path):
            vae.load_state_dict(torch.load(path))
        else:
            vae.load_state_dict(torch.load(os.path.join(self.args.state, "vae.pt"))["vae"])
            torch.save(normalise(vae).state_dict(), path)
        return vae.requires_grad_(False)

    def _vocabulary(self):
        """Ids of the words that captions of the world consist of."""
        rng = random.Random(0)
        ids = tokenize(self.tokenizer, ["", *(scene(rng, *size)[1] for _ in range(250) for size in SHAPES[128][:2])])
        return ids.unique()

    def _load(self, saved):
        for name in ("unet", "text", "ema_unet", "ema_text", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.used = saved["step"], saved["used"]

    def save(self):
        saved = {n: getattr(self, n).state_dict() for n in ("unet", "text", "ema_unet", "ema_text", "optimizer")}
        torch.save({**saved, "step": self.step, "used": self.used}, self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)

    def loss(self, z, ids):
        """Weighted mean square error of the predicted noise."""
        t = torch.randint(0, 1000, (len(z),))
        noise = torch.randn_like(z)
        a = self.acp[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * z + (1 - a).sqrt() * noise
        context = self.text(spoil(ids, self.empty, self.rng)).last_hidden_state
        guess = self.unet(noisy.to(memory_format=torch.channels_last), t, context).sample
        return ((guess - noise).square().mean((1, 2, 3)) * self.weight[t]).mean()

    def train_step(self, z, ids):
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.used / (self.args.minutes * 60), self.step, self.args.lr)
        loss = self.loss(z, ids)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*self.unet.parameters(), *self.text.parameters()], 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % 5 == 0:
            decay = min(.9985, (1 + self.step) / (10 + self.step)) ** 5
            follow(self.ema_unet, self.unet, decay)
            follow(self.ema_text, self.text, decay)
        return loss.item()

    def sheet(self, name):
        contact_sheet(self.ema_unet, self.ema_text, self.vae, self.tokenizer,
                      os.path.join(self.args.state, name), seed=5, side=self.args.size)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("state", help="folder with vae.pt, for checkpoints and sheets")
    ap.add_argument("--size", type=int, default=128, choices=SHAPES, help="128: whole scenes; 64: close-ups")
    ap.add_argument("--start", help="checkpoint of a run of another size to start from")
    ap.add_argument("--minutes", type=float, default=90)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--lr", type=float, default=7e-4)
    ap.add_argument("--first", type=int, default=3000, help="scenes encoded before the first step")
    ap.add_argument("--sheet-minutes", type=float, default=6)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    run = Run(a)
    pool = Pool(run.vae, run.tokenizer, a.seed + 1000 + run.step, SHAPES[a.size])
    last, recent = time.time(), []
    stored = os.path.join(a.state, f"pool{a.size}.pt")
    if os.path.exists(stored):
        pool.latents, pool.ids = torch.load(stored)
    for shape, share in enumerate(SHARES):
        while len(pool.latents[shape]) < a.first * share:
            pool.grow(40, shape)
    pool.save(stored)
    print(f"pool ready after {time.time() - last:.0f} s", flush=True)
    if run.step == 0 and not a.start:
        right = warm_up(run.text, run.tokenizer, torch.stack(sum(pool.ids, [])))
        run.ema_text.load_state_dict(run.text.state_dict())
        print(f"text encoder reads {right:.0%} of the captions fully right", flush=True)
    last = time.time()
    saved_at = run.used
    while run.used < a.minutes * 60:
        if run.step % 25 == 0:
            pool.grow(40, pool.rng.choices(range(len(SHARES)), SHARES)[0])
        recent.append(run.train_step(*pool.batch(a.batch)))
        now = time.time()
        run.used, last = run.used + now - last, now
        if run.step % 50 == 0 or run.step == 5:
            print(f"step {run.step} {run.used / 60:.1f} min loss {np.mean(recent):.4f} "
                  f"pool {sum(map(len, pool.latents))}", flush=True)
            recent = []
        if run.used - saved_at > a.sheet_minutes * 60 or run.used >= a.minutes * 60:
            saved_at = run.used
            run.save()
            pool.save(stored)
            run.sheet(f"sheet{a.size}_{run.step:06d}.png")


if __name__ == "__main__":
    main()
