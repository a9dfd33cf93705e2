"""Makes tests/fixtures/stepwise.safetensors with PyTorch and LyCORIS (lycoris-lora 4.1.3).

    python tests/reference/make_stepwise_fixtures.py

What a training step with dropouts, or of a DyLoRA, computes: outputs of the layers of tests/fixtures/lycoris/reference.safetensors with an
adapter, and the gradients of mean((y - target)^2) with respect to its tensors. LoRA's formulas are sd-scripts' (LoRAModule.forward in
networks/lora.py; DyLoRAModule.forward in networks/dylora.py with zeros above the block, which it leaves in); other kinds' weights are
LyCORIS' own (get_weight), their rows dropped as it does. Which values are dropped follows vulora's counter-based numbers, made here again: random_bits (base/random.c), pcg4d (ops/dropout.c).
"""

import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import load_file, save_file

from make_op_fixtures import choices, mix

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
SEED = 7
DROPOUT, MODULES, BLOCK = 4, 5, 6  # random_stream
ELEMENTS, RANKS, MODULE, STREAMS = 0, 1, 2, 4

# name: (kind, what the test gives, update, batch). The test has the same list.
CASES = {
    "dylora": ("dylora", dict(block=2), 3, 0),
    "dylora_first": ("dylora", dict(block=4), 6, 0),
    "dylora_module": ("dylora", dict(block=2, module=0.5), 1, 0),
    "network": ("lora", dict(network=0.3), 0, 5),
    "rank": ("lora", dict(rank=0.4), 2, 1),
    "all": ("lora", dict(network=0.2, rank=0.3, module=0.4), 4, 9),
    "loha": ("loha", dict(rank=0.3, module=0.4), 1, 2),
    "lokr": ("lokr", dict(rank=0.3, module=0.4), 2, 3),
    "full": ("full", dict(rank=0.3), 0, 4),
    "oft": ("oft", dict(module=0.5), 3, 0),
    "dora": ("dora", dict(module=0.5), 4, 0),
}
R, ALPHA = 8, 4


def random_bits(stream, counter):
    with np.errstate(over="ignore"):
        one = lambda v: np.array([v], np.uint64)
        return int(mix(mix(mix(one(SEED)) ^ one(stream)) ^ one(counter))[0])


def key(stream, counter):
    bits = random_bits(stream, counter)
    return bits >> 40, bits >> 16 & 0xFFFFFF


def kept(key, stream, places, rate):
    return torch.tensor((choices(key, stream, places) >= np.uint64(int(rate * 2**32))).astype(np.float32))


def apply(layer, x, weight):
    return F.conv2d(x, weight, stride=layer["stride"], padding=weight.shape[-1] // 2) if x.dim() == 4 else F.linear(x, weight)


def channels_last_places(h):
    """The index of every element of [n, c, h, w] or [n, tokens, c] as it lies in vulora, and its image * columns + column."""
    n, c = h.shape[0], h.shape[1] if h.dim() == 4 else h.shape[-1]
    shape = (n, *h.shape[2:], c) if h.dim() == 4 else tuple(h.shape)
    place = np.arange(h.numel()).reshape(shape)
    column = place // (h.numel() // n) * c + place % c
    move = lambda a: np.moveaxis(a, -1, 1) if h.dim() == 4 else a
    return move(place), move(column)


def module_kept(index, options, update):
    if not options.get("module"):
        return True
    return bool(kept(key(MODULES, update), index * STREAMS + MODULE, 0, options["module"]))


def lora(layer, x, p, index, options, update, batch):
    down, up = p["lora_down.weight"], p["lora_up.weight"]
    scale = ALPHA / R
    if "block" in options:  # the prefix is LyCORIS', the scale sd-scripts'
        unit, u = options["block"], (random_bits(BLOCK, update) >> 11) * 2.0**-53
        b = int(u * (R // unit)) * unit
        cut = lambda t: torch.cat([t[:b].detach(), t[b : b + unit]])
        down, up = cut(down), cut(up.transpose(0, 1)).transpose(0, 1)
        scale *= math.sqrt(R / (b + unit))
    h = apply(layer, x, down)
    place, column = channels_last_places(h)
    if "network" in options:
        p_ = options["network"]
        h = h * kept(key(DROPOUT, batch), index * STREAMS + ELEMENTS, place, p_) / (1 - p_)
    if "rank" in options:
        p_ = options["rank"]
        h = h * kept(key(DROPOUT, batch), index * STREAMS + RANKS, column, p_)
        scale *= 1 / (1 - p_)
    up = up if x.dim() == 4 else up.reshape(up.shape[:2])
    return (F.conv2d(h, up) if x.dim() == 4 else F.linear(h, up)) * scale


def rows(index, options, batch, out):
    return kept(key(DROPOUT, batch), index * STREAMS + RANKS, np.arange(out), options["rank"])


def make_parameters(kind, layer, org, x):
    """The adapter's tensors by their names in the file, and LyCORIS' module where it computes."""
    out, width, k = org.weight.shape[0], org.weight.shape[1], org.weight.shape[2:]
    random = lambda *shape: (torch.randn(*shape) * 0.3).requires_grad_()
    if kind in ("lora", "dylora"):
        ones = [1] * len(k)
        return {"lora_down.weight": random(R, width, *k), "lora_up.weight": random(out, R, *ones)}, None
    if kind == "full":
        return {"diff": random(*org.weight.shape)} | ({"diff_b": random(out)} if org.bias is not None else {}), None
    make = {
        "loha": lambda: LohaModule("m", org, lora_dim=2, alpha=ALPHA),
        "lokr": lambda: LokrModule("m", org, lora_dim=1, alpha=ALPHA, factor=2),
        "oft": lambda: DiagOFTModule("m", org, lora_dim=4),
        "dora": lambda: LoConModule("m", org, lora_dim=2, alpha=ALPHA, weight_decompose=True, wd_on_out=False),
    }[kind]
    module = make()
    for name, p in module.named_parameters():
        if "org" not in name:
            p.data = p.data * (1 + 0.3 * torch.rand_like(p)) if name == "dora_scale" else torch.randn_like(p) * 0.3
    return {n: p for n, p in module.named_parameters() if "org" not in n}, module


def run(case, index, layer, org, x, target):
    kind, options, update, batch = CASES[case]
    p, module = make_parameters(kind, layer, org, x)
    y = org(x)
    if module_kept(index, options, update):
        if kind in ("lora", "dylora"):
            y = y + lora(layer, x, p, index, options, update, batch)
        elif kind == "full":
            mask = rows(index, options, batch, org.weight.shape[0])
            moved = apply(layer, x, p["diff"] * mask.reshape(-1, *[1] * (org.weight.dim() - 1)))
            bias = p["diff_b"] * mask if "diff_b" in p else torch.zeros(1)
            y = y + moved + bias.reshape(1, -1, *[1] * (x.dim() - 2)) if x.dim() == 4 else y + moved + bias
        elif kind in ("loha", "lokr"):
            d = module.get_weight(module.shape)
            mask = rows(index, options, batch, d.shape[0])
            y = y + apply(layer, x, d.reshape(org.weight.shape) * mask.reshape(-1, *[1] * (org.weight.dim() - 1)))
        else:
            y = module(x)
    loss = F.mse_loss(y, target)
    if loss.requires_grad:
        loss.backward()
    return y.detach(), p


def main():
    reference, out = load_file(FIXTURES / "lycoris" / "reference.safetensors"), {}
    keys = [n[7:] for n in reference if n.startswith("weight/") and reference[n].dim() > 1]
    flat = lambda k: ("lora_unet_" if k.startswith("unet") else "lora_te_") + k.split("/", 1)[1].replace(".", "_")
    for number, case in enumerate(CASES):
        torch.manual_seed(number)
        for index, k in enumerate(sorted(keys, key=flat)):
            weight, bias = reference["weight/" + k], reference.get("bias/" + k)
            layer = {"stride": 2 if "downsamplers" in k else 1}
            if weight.dim() == 4:
                org = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1], layer["stride"], weight.shape[-1] // 2, bias=bias is not None)
            else:
                org = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            org.weight.data, org.weight.requires_grad = weight, False
            if bias is not None:
                org.bias.data, org.bias.requires_grad = bias, False
            y, parameters = run(case, index, layer, org, reference["x/" + k], reference["target/" + k])
            out[f"{case}/y/{k}"] = y
            for name, p in parameters.items():
                out[f"{case}/value/{flat(k)}.{name}"] = p.detach().clone()
                out[f"{case}/grad/{flat(k)}.{name}"] = torch.zeros_like(p) if p.grad is None else p.grad
    path = FIXTURES / "stepwise.safetensors"
    save_file({k: v.contiguous().float() for k, v in out.items()}, path)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
