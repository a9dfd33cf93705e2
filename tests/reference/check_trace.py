"""Recomputes steps of a training in PyTorch, with diffusers, transformers and peft, from a trace of `vulora train`.

    python tests/reference/random_model.py MODEL
    vulora train --model MODEL --trace TRACE --trace-tensors 3 ...
    python tests/reference/check_trace.py MODEL TRACE [--clip-skip N] [--weight-decay X] [--max-grad-norm X]

MODEL is a diffusers folder. Everything is computed in double precision. Exits with 1 when a figure is above its limit.
"""

import argparse
import json
import pathlib

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import CLIPTextModel

LIMITS = {
    "text states": 2e-5,
    "loss": 1e-5,
    "gradient": 1e-3,
    "gradient of the worst tensor": 1e-3,
    "grad_norm": 1e-4,
    "AdamW on the traced gradient": 1e-6,
    "whole update": 1e-2,
}
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def relative(value, expected):
    value, expected = value.double().flatten(), expected.double().flatten()
    return (torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-30)).item()


def add_lora(model, prefix, before):
    """Adds peft's layers where the trace has some, with its values. Returns {name in the trace: parameter}."""
    # Newer releases of transformers have no `text_model` in their module names.
    missing = "text_model_" if prefix == "lora_te_" and not hasattr(model, "text_model") else ""
    paths = {prefix + missing + name.replace(".", "_"): name for name, _ in model.named_modules()}
    flat = sorted(key.rsplit(".", 1)[0] for key in before if key.startswith(prefix) and key.endswith(".alpha"))
    if not flat:
        return {}
    unknown = [name for name in flat if name not in paths]
    assert not unknown, f"the model has no {unknown}"
    ranks = {paths[name]: before[name + ".lora_down.weight"].shape[0] for name in flat}
    alphas = {paths[name]: before[name + ".alpha"].item() for name in flat}
    config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alphas, lora_alpha=1, r=1)
    inject_adapter_in_model(config, model)
    parameters, modules = {}, dict(model.named_modules())
    for name in flat:
        layer = modules[paths[name]]
        assert layer.scaling["default"] == alphas[paths[name]] / ranks[paths[name]]
        for part, factor in (("lora_down", layer.lora_A), ("lora_up", layer.lora_B)):
            key, weight = f"{name}.{part}.weight", factor["default"].weight
            weight.data = before[key].reshape(weight.shape).double()
            parameters[key] = weight
    return parameters


def text_states(encoder, ids, clip_skip):
    output = encoder(ids, output_hidden_states=True)
    text = getattr(encoder, "text_model", encoder)
    return text.final_layer_norm(output.hidden_states[-clip_skip])


def batches(step):
    """The batches of an accumulated step."""
    number = 0
    while "latents" + (f".{number}" if number else "") in step:
        ending = f".{number}" if number else ""
        yield {k: step[k + ending] for k in ("latents", "noise", "timestep", "input_ids", "encoder_hidden_states")}
        number += 1


def overall(pairs):
    """Relative error of all tensors together, and of the worst one: tensors that are next to nothing are measured against all."""
    values, references = (torch.cat([p[i].double().flatten() for p in pairs]) for i in (0, 1))
    floor = 1e-4 * torch.linalg.vector_norm(references)
    worst = max(((v.double() - e).norm() / e.norm().clamp_min(floor)).item() for v, e in pairs)
    return relative(values, references), worst


class Replay:
    """The training in PyTorch, set back to the traced values before every step."""

    def __init__(self, options, before):
        self.options = options
        self.models = {
            "unet": UNet2DConditionModel.from_pretrained(options.model / "unet").double().eval(),
            "text_encoder": CLIPTextModel.from_pretrained(options.model / "text_encoder").double().eval(),
        }
        self.alphas = DDPMScheduler.from_pretrained(options.model / "scheduler").alphas_cumprod.double()
        self.groups = {}
        for part, model in self.models.items():
            model.requires_grad_(False)
            self.groups[part] = add_lora(model, PREFIXES[part], before)
        self.parameters = {k: w.requires_grad_(True) for group in self.groups.values() for k, w in group.items()}
        # One goes on from the gradients found here, one from the traced ones.
        self.own, self.traced = (self.make_optimizer() for _ in range(2))
        self.errors = {}

    def make_optimizer(self):
        groups = [{"params": list(g.values()), "lr": 0.0} for g in self.groups.values() if g]
        return torch.optim.AdamW(groups, weight_decay=self.options.weight_decay)

    def note(self, name, value):
        self.errors[name] = max(value, self.errors.get(name, 0))

    def gradients(self, step):
        """Leaves them in the parameters; returns the loss."""
        for w in self.parameters.values():
            w.grad = None
        losses, all_batches = [], list(batches(step))
        for batch in all_batches:
            states = text_states(self.models["text_encoder"], batch["input_ids"].long(), self.options.clip_skip)
            self.note("text states", relative(batch["encoder_hidden_states"], states.detach()))
            latents, noise, timestep = batch["latents"].double(), batch["noise"].double(), batch["timestep"].long()
            kept = self.alphas[timestep].view(-1, 1, 1, 1)
            noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
            loss = torch.nn.functional.mse_loss(self.models["unet"](noisy, timestep, states).sample, noise)
            (loss / len(all_batches)).backward()
            losses.append(loss.item())
        for w in self.parameters.values():
            # Layers that clip skip leaves out.
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        return sum(losses) / len(losses)

    def update(self, optimizer, line, before):
        """The values that AdamW makes of the gradients in the parameters."""
        for k, w in self.parameters.items():
            w.data = before[k].reshape(w.shape).double()
        rates = [line["lr"][part] for part, g in self.groups.items() if g]
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate
        optimizer.step()
        return {k: w.data.reshape(before[k].shape) for k, w in self.parameters.items()}

    def check(self, step, line, before):
        for k, w in self.parameters.items():
            w.data = before[k].reshape(w.shape).double()
        loss = self.gradients(step)
        self.note("loss", abs(step["loss"].item() - loss) / loss)
        self.note("loss", abs(line["loss"] - loss) / loss)
        whole, worst = overall([(step["grad/" + k], w.grad.reshape(before[k].shape)) for k, w in self.parameters.items()])
        self.note("gradient", whole)
        self.note("gradient of the worst tensor", worst)
        limit = self.options.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit).item()
        self.note("grad_norm", abs(line["grad_norm"] - norm) / norm)
        after = self.update(self.own, line, before)
        changes = [(step["after/" + k].double() - before[k].double(), v - before[k].double()) for k, v in after.items()]
        self.note("whole update", overall(changes)[0])
        for k, w in self.parameters.items():
            w.grad = step["grad/" + k].reshape(w.shape).double() * min(1.0, limit / (line["grad_norm"] + 1e-6))
        after = self.update(self.traced, line, before)
        self.note("AdamW on the traced gradient", overall([(step["after/" + k], v) for k, v in after.items()])[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--clip-skip", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    options = parser.parse_args()
    steps = [load_file(path) for path in sorted(options.trace.glob("step-*.safetensors"))]
    lines = [json.loads(line) for line in (options.trace / "trace.jsonl").read_text().splitlines()]
    before = {k[len("before/") :]: v for k, v in steps[0].items() if k.startswith("before/")}
    replay = Replay(options, before)
    named = {k[len("grad/") :] for k in steps[0] if k.startswith("grad/")}
    assert set(replay.parameters) == named, "other tensors than the adapter's have gradients"
    for step, line in zip(steps, lines):
        replay.check(step, line, before)
        before = {k: step["after/" + k] for k in named}
    print(f"{len(steps)} steps, {len(named)} tensors; the largest error of any step:")
    failed = False
    for name, value in replay.errors.items():
        bad = not value <= LIMITS[name]
        failed |= bad
        print(f"{name}: {value:.2e} (limit {LIMITS[name]:.0e}){' TOO LARGE' if bad else ''}")
    raise SystemExit(failed)


main()
