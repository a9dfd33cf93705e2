"""Makes tests/fixtures/diffusion_*.safetensors from PyTorch's generator and diffusers' schedulers.

    python tests/reference/make_diffusion_fixtures.py

The network is a formula that tests/diffusion/test_sampler.c computes too, so that timesteps, input scaling and every step are compared.
"""

import pathlib

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral_module
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
STEPS = (1, 2, 5, 20, 30)
COUNT = 24  # floats in a sample, [1, 4, 2, 3]

# scheduler/scheduler_config.json of Stable Diffusion 1.5
SD15 = dict(
    _class_name="PNDMScheduler",
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    num_train_timesteps=1000,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
    clip_sample=False,
)


def network(sample, t):
    bias = (torch.arange(COUNT, dtype=torch.float32) % 7 - 3).reshape(sample.shape) * 0.1
    return sample / (1 + sample.abs()) * (0.5 + float(t) * 0.0005) + bias


def scheduler_for(name, karras, steps):
    if name == "ddim":
        if not karras:
            return DDIMScheduler.from_config(SD15)
        # diffusers' DDIM has no Karras spacing; first-order DPM-Solver++ is DDIM
        return DPMSolverMultistepScheduler.from_config(SD15, solver_order=1, use_karras_sigmas=True)
    if name == "euler":
        return EulerDiscreteScheduler.from_config(SD15, use_karras_sigmas=karras)
    if name == "euler-a":
        return EulerAncestralDiscreteScheduler.from_config(SD15)
    return DPMSolverMultistepScheduler.from_config(SD15, use_karras_sigmas=karras)


def trajectory(name, karras, steps, start, fresh):
    scheduler = scheduler_for(name, karras, steps)
    scheduler.set_timesteps(steps)
    if name == "euler-a" and karras:  # it ignores use_karras_sigmas: give it Euler's
        euler = scheduler_for("euler", True, steps)
        euler.set_timesteps(steps)
        scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
    drawn = iter(fresh)
    ancestral_module.randn_tensor = lambda shape, **_: next(drawn).reshape(shape)
    sample = start.reshape(1, 4, 2, 3) * scheduler.init_noise_sigma
    samples = []
    for t in scheduler.timesteps:
        noise_pred = network(scheduler.scale_model_input(sample, t), t)
        sample = scheduler.step(noise_pred, t, sample).prev_sample
        samples.append(sample.reshape(COUNT).float())
    if isinstance(scheduler, DDIMScheduler):
        a = scheduler.alphas_cumprod
        sigmas = ((1 - a) / a) ** 0.5
        sigmas = torch.cat([sigmas[scheduler.timesteps], sigmas[:1]])
    else:
        sigmas = scheduler.sigmas
    return {
        "samples": torch.stack(samples),
        "timesteps": scheduler.timesteps.float(),
        "sigmas": sigmas.float(),
    }


def make_samplers():
    torch.manual_seed(1)
    start, fresh = torch.randn(COUNT), torch.randn(max(STEPS), COUNT)
    a = DDIMScheduler.from_config(SD15).alphas_cumprod
    out = {"start": start, "fresh": fresh, "alphas_cumprod": a, "train_sigmas": ((1 - a) / a) ** 0.5}
    for name in ("ddim", "euler", "euler-a", "dpmpp-2m"):
        for karras in (False, True):
            for steps in STEPS:
                for key, value in trajectory(name, karras, steps, start, fresh).items():
                    out[f"{name}.{'karras' if karras else 'default'}.{steps}.{key}"] = value.contiguous()
    save_file(out, OUT / "diffusion_samplers.safetensors")


def philox_normals(seed, offset, n):
    """cuRAND's Philox as torch.randn(device="cuda") runs it: one sub-sequence an element, one offset a call."""
    c = [np.full(n, offset, np.uint64), np.zeros(n, np.uint64), np.arange(n, dtype=np.uint64), np.zeros(n, np.uint64)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (q >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]),
            q & low,
            (p >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]),
            p & low,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    u, v = (c[0] + 0.5) * 2.0**-32, (c[1] + 0.5) * 2.0**-32
    return (np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * v)).astype(np.float32)


def make_random():
    out = {}
    for seed in (0, 42, 4294967295, 123456789012345):
        for n in (1, 5, 15, 16, 17, 31, 32, 100, 256):
            generator = torch.Generator("cpu").manual_seed(seed)
            out[f"cpu.{seed}.{n}"] = torch.cat([torch.randn(n, generator=generator) for _ in range(2)])
        out[f"gpu.{seed}.64"] = torch.from_numpy(np.concatenate([philox_normals(seed, o, 64) for o in range(2)]))
    save_file(out, OUT / "diffusion_random.safetensors")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    make_samplers()
    make_random()
