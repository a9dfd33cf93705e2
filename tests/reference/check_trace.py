"""Recomputes the first step of a training in PyTorch, with diffusers, transformers and peft, from what `vulora train --trace` wrote.

    python tests/reference/random_model.py MODEL
    vulora train --model MODEL --trace TRACE --trace-tensors 1 ...
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

LIMITS = {"text states": 2e-5, "loss": 1e-5, "gradient": 1e-3, "grad_norm": 1e-4, "AdamW on the traced gradient": 1e-6, "whole update": 1e-2}
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def relative(value, expected):
    value, expected = value.double().flatten(), expected.double().flatten()
    return (torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-30)).item()


def add_lora(model, prefix, before):
    """Adds peft's layers where the trace has some, with its values. Returns {name in the trace: parameter}."""
    paths = {prefix + name.replace(".", "_"): name for name, _ in model.named_modules()}
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


def worst_and_all(pairs):
    worst = max(((relative(value, expected), name) for name, value, expected in pairs), default=(0, ""))
    whole = relative(torch.cat([v.double().flatten() for _, v, _ in pairs]), torch.cat([e.double().flatten() for _, _, e in pairs]))
    return whole, worst


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--clip-skip", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    options = parser.parse_args()
    step = load_file(options.trace / "step-000001.safetensors")
    line = json.loads((options.trace / "trace.jsonl").read_text().splitlines()[0])
    before = {k[len("before/") :]: v for k, v in step.items() if k.startswith("before/")}

    models = {
        "unet": UNet2DConditionModel.from_pretrained(options.model / "unet").double().eval(),
        "text_encoder": CLIPTextModel.from_pretrained(options.model / "text_encoder").double().eval(),
    }
    scheduler = DDPMScheduler.from_pretrained(options.model / "scheduler")
    groups = {}
    for part, model in models.items():
        model.requires_grad_(False)
        groups[part] = add_lora(model, PREFIXES[part], before)
        for weight in groups[part].values():
            weight.requires_grad_(True)
    parameters = {k: w for group in groups.values() for k, w in group.items()}
    assert set(parameters) == {k[len("grad/") :] for k in step if k.startswith("grad/")}, "other tensors than the adapter's have gradients"

    report, losses, state_errors, all_batches = {}, [], [], list(batches(step))
    for batch in all_batches:
        states = text_states(models["text_encoder"], batch["input_ids"].long(), options.clip_skip)
        state_errors.append(relative(batch["encoder_hidden_states"], states.detach()))
        latents, noise, timestep = batch["latents"].double(), batch["noise"].double(), batch["timestep"].long()
        alphas = scheduler.alphas_cumprod.double()[timestep].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        loss = torch.nn.functional.mse_loss(models["unet"](noisy, timestep, states).sample, noise)
        (loss / len(all_batches)).backward()
        losses.append(loss.item())
    loss = sum(losses) / len(losses)
    report["text states"] = max(state_errors)
    report["loss"] = abs(step["loss"].item() - loss) / loss
    grads = [(k, step["grad/" + k], w.grad) for k, w in parameters.items()]
    # The gradient of `down` is zero as long as `up` is: there the absolute difference counts.
    zero = [abs(v.double() - e).max().item() for _, v, e in grads if e.abs().max() == 0]
    report["gradient"], worst = worst_and_all([g for g in grads if g[2].abs().max() > 0])
    print(f"gradient tensors: {len(grads)}, of them all zero {len(zero)} (largest value here {max(zero, default=0):.1e}); worst {worst[0]:.1e} {worst[1]}")

    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), options.max_grad_norm or float("inf")).item()
    report["grad_norm"] = abs(line["grad_norm"] - norm) / norm

    def adamw():
        optimizer = torch.optim.AdamW(
            [{"params": list(g.values()), "lr": line["lr"][part]} for part, g in groups.items() if g],
            weight_decay=options.weight_decay,
        )
        optimizer.step()
        changes = [(k, step["after/" + k].double() - before[k].double(), w.data.reshape(before[k].shape) - before[k].double()) for k, w in parameters.items()]
        values = [(k, step["after/" + k], w.data) for k, w in parameters.items()]
        for k, w in parameters.items():
            w.data = before[k].reshape(w.shape).double()
        return worst_and_all(changes)[0], worst_and_all(values)[0]

    report["whole update"], values = adamw()
    print(f"values after the step, everything recomputed: {values:.1e}")
    clip = min(1.0, options.max_grad_norm / (line["grad_norm"] + 1e-6)) if options.max_grad_norm else 1.0
    for k, w in parameters.items():
        w.grad = step["grad/" + k].reshape(w.shape).double() * clip
    _, report["AdamW on the traced gradient"] = adamw()

    failed = False
    for name, value in report.items():
        bad = not value <= LIMITS[name]
        failed |= bad
        print(f"{name}: {value:.2e} (limit {LIMITS[name]:.0e}){' TOO LARGE' if bad else ''}")
    raise SystemExit(failed)


main()
