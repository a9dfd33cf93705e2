"""Checks the optimizer's part of a traced training whose updates leave weights alone (DyLoRA's ranks, modules dropped): from the traced
gradients torch.optim.AdamW, with every rank a parameter of its own that has no gradient when it is left out, must make the same weights.

    vulora train --kind dylora --rank 8 --block-size 2 --module-dropout 0.3 --steps 6 --trace DIR --trace-tensors 6 ...
    python tests/reference/check_stepwise.py DIR --rank 8 --block-size 2 --module-dropout 0.3 --lr 1e-3
"""

import argparse
import pathlib

import torch
from safetensors.torch import load_file

import make_stepwise_fixtures as numbers


def by_rank(name, tensor):
    return tensor if "lora_down" in name else tensor.transpose(0, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--block-size", type=int, default=4)
    parser.add_argument("--module-dropout", type=float, default=0)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, default=42)
    o = parser.parse_args()
    numbers.SEED = o.seed
    steps = [load_file(f) for f in sorted(o.trace.glob("step-*.safetensors"))]
    names = sorted(k[5:] for k in steps[0] if k.startswith("grad/"))
    modules = sorted({n.split(".")[0] for n in names})
    ranks = {n: [torch.nn.Parameter(p.clone()) for p in by_rank(n, steps[0]["before/" + n])] for n in names}
    every = [p for n in names for p in ranks[n]]
    adamw = torch.optim.AdamW(every, lr=o.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    for update, step in enumerate(steps):
        u = (numbers.random_bits(numbers.BLOCK, update) >> 11) * 2.0**-53
        begin = int(u * (o.rank // o.block_size)) * o.block_size
        kept = [numbers.module_kept(i, {"module": o.module_dropout}, update) for i in range(len(modules))]
        for n in names:
            grad = by_rank(n, step["grad/" + n])
            for r, p in enumerate(ranks[n]):
                trained = kept[modules.index(n.split(".")[0])] and begin <= r < begin + o.block_size
                assert trained or not grad[r].any(), (update, n, r)
                p.grad = grad[r].clone() if trained else None
        torch.nn.utils.clip_grad_norm_(every, 1.0)
        adamw.step()
        worst = max((torch.stack([p.detach() for p in ranks[n]]) - by_rank(n, step["after/" + n])).abs().max().item() for n in names)
        print(f"update {update}: block {begin}, {kept.count(False)} modules left out, largest difference {worst:.1e}")
        assert worst < 1e-6
    print("as torch.optim.AdamW")


if __name__ == "__main__":
    main()
