"""Writes tests/fixtures/train_rates.safetensors: what diffusers' get_scheduler multiplies a learning rate with, step by step.

Each tensor is named SCHEDULE/STEPS/WARMUP and holds one factor for every step. Needs torch, diffusers and safetensors.
"""

import pathlib

import torch
from diffusers.optimization import get_scheduler
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
CASES = [(12, 0), (12, 5), (10, 1), (7, 6), (1, 0), (40, 13)]
SPELLINGS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def factors(name, steps, warmup):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(values, dtype=torch.float64)


def main():
    tensors = {
        f"{ours}/{steps}/{warmup}": factors(theirs, steps, warmup)
        for ours, theirs in SPELLINGS.items()
        for steps, warmup in CASES
    }
    save_file(tensors, FOLDER / "train_rates.safetensors")


main()
