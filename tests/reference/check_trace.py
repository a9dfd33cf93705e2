"""Recomputes steps of a training in PyTorch, with diffusers, transformers and peft, from a trace of `vulora train`.

    python tests/reference/random_model.py MODEL
    vulora train --model MODEL --trace TRACE --trace-tensors 3 ...
    python tests/reference/check_trace.py MODEL TRACE [--clip-skip N] [--weight-decay X] [--max-grad-norm X]

MODEL is a diffusers folder or a single-file checkpoint. Everything is computed in double precision, and every step starts from the traced
values. At full size that takes too much memory, and the question is another one, whether the whole training goes the same way:

    python tests/reference/check_trace.py MODEL.safetensors TRACE --fp32 --free

computes in fp32 (7.5 GB, a dozen seconds a step) and goes from the first step's values on by itself. `--autocast` is for comparing what
bf16 costs PyTorch; `--report` judges nothing. Prints a Markdown table of the steps; exits with 1 when a figure is above its limit.
"""

import argparse
import contextlib
import json
import pathlib

import torch
from model_parts import PREFIXES, add_lora, load_scheduler, load_text_encoder, load_unet
from model_parts import mean_squared_error, overall, relative, text_states
from safetensors.torch import load_file

LIMITS = {
    "text states": 2e-5,
    "loss": 1e-5,
    "gradient": 1e-3,
    "gradient of the worst tensor": 1e-3,
    "grad_norm": 1e-4,
    "AdamW on the traced gradient": 1e-6,
    "whole update": 1e-2,
}
# AdamW moves a value by its gradient's sign at first, however small it is: where it is next to nothing, rounding decides.
FREE_LIMITS = LIMITS | {"gradient of the worst tensor": 2e-2, "adapter at the end": 1e-3, "what the training changed": 1e-2}
BATCH = ("latents", "noise", "timestep", "input_ids", "encoder_hidden_states")


def batches(step):
    """The batches of an accumulated step."""
    number = 0
    while "latents" + (f".{number}" if number else "") in step:
        ending = f".{number}" if number else ""
        yield {k: step[k + ending] for k in BATCH}
        number += 1


class Optimizer:
    """PyTorch's AdamW on its own copy of the adapter, in double precision."""

    def __init__(self, parts, values, weight_decay):
        """parts: {part: names of its tensors}"""
        self.values = {k: values[k].double().requires_grad_(True) for names in parts.values() for k in names}
        self.parts = {part: names for part, names in parts.items() if names}
        groups = [{"params": [self.values[k] for k in names], "lr": 0.0} for names in self.parts.values()]
        self.adamw = torch.optim.AdamW(groups, weight_decay=weight_decay)

    def set(self, values):
        for k, w in self.values.items():
            w.data = values[k].double()

    def update(self, gradients, rates):
        """Returns the new values."""
        for k, w in self.values.items():
            w.grad = gradients[k].double()
        for part, group in zip(self.parts, self.adamw.param_groups):
            group["lr"] = rates[part]
        self.adamw.step()
        return {k: w.detach().clone() for k, w in self.values.items()}


class Replay:
    """The training in PyTorch; set back to the traced values before every step, or free."""

    def __init__(self, options, before):
        self.options, self.before = options, before
        self.dtype = torch.float32 if options.fp32 else torch.float64
        self.models = {"unet": load_unet(options.model, self.dtype), "text_encoder": load_text_encoder(options.model, self.dtype)}
        self.alphas = load_scheduler(options.model).alphas_cumprod.double()
        parts = {part: add_lora(model, PREFIXES[part], before) for part, model in self.models.items()}
        self.parameters = {k: w for group in parts.values() for k, w in group.items()}
        # One goes on from the gradients found here, one from the traced ones.
        self.own, self.traced = (Optimizer(parts, before, options.weight_decay) for _ in range(2))
        self.errors = {}

    def note(self, name, value):
        self.errors[name] = max(value, self.errors.get(name, 0))

    def gradients(self, step):
        """(loss, gradients)"""
        for k, w in self.parameters.items():
            w.grad = None
            w.data = self.own.values[k].detach().reshape(w.shape).to(self.dtype)
        losses, all_batches = [], list(batches(step))
        cast = torch.autocast("cpu", torch.bfloat16) if self.options.autocast else contextlib.nullcontext()
        for batch in all_batches:
            with cast:
                states = text_states(self.models["text_encoder"], batch["input_ids"].long(), self.options.clip_skip)
                self.note("text states", relative(batch["encoder_hidden_states"], states.detach()))
                given = [batch["latents"].to(self.dtype), batch["noise"].to(self.dtype), batch["timestep"], states.to(self.dtype)]
                loss = mean_squared_error(self.models["unet"], self.alphas, *given)
            (loss / len(all_batches)).backward()
            losses.append(loss.item())
        # Layers that clip skip leaves out have no gradient.
        found = {k: torch.zeros_like(w) if w.grad is None else w.grad for k, w in self.parameters.items()}
        return sum(losses) / len(losses), {k: g.reshape(self.before[k].shape).double() for k, g in found.items()}

    def clipped(self, gradients, norm):
        limit = self.options.max_grad_norm or float("inf")
        factor = min(1.0, limit / (norm + 1e-6))  # as clip_grad_norm_
        return {k: g.double() * factor for k, g in gradients.items()}

    def check(self, step, line):
        before, names = self.before, list(self.parameters)
        if not self.options.free:
            self.own.set(before)
        start = {k: self.own.values[k].detach().clone() for k in names}
        loss, gradients = self.gradients(step)
        traced = {k: step["grad/" + k] for k in names}
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients.values()])).item()
        self.note("loss", max(abs(value - loss) / loss for value in (step["loss"].item(), line["loss"])))
        for name, value in zip(("gradient", "gradient of the worst tensor"), overall([(traced[k], gradients[k]) for k in names])):
            self.note(name, value)
        self.note("grad_norm", abs(line["grad_norm"] - norm) / norm)
        after = self.own.update(self.clipped(gradients, norm), line["lr"])
        if not self.options.free:
            self.note("whole update", overall([(step["after/" + k].double() - before[k].double(), after[k] - start[k]) for k in names])[0])
        self.traced.set(before)
        after = self.traced.update(self.clipped(traced, line["grad_norm"]), line["lr"])
        self.note("AdamW on the traced gradient", overall([(step["after/" + k], after[k]) for k in names])[0])
        self.before = {k: step["after/" + k] for k in names}
        print(
            f"| {line['step']} | {line['loss']:.6f} | {loss:.6f} | {abs(line['loss'] - loss) / loss:.1e} "
            f"| {line['grad_norm']:.6f} | {norm:.6f} | {abs(line['grad_norm'] - norm) / norm:.1e} |",
            flush=True,
        )

    def compare_ends(self, first):
        ours, theirs = self.before, self.own.values
        self.note("adapter at the end", overall([(ours[k], theirs[k].detach()) for k in theirs])[0])
        changes = [(ours[k].double() - first[k].double(), theirs[k].detach() - first[k].double()) for k in theirs]
        self.note("what the training changed", overall(changes)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("trace", type=pathlib.Path)
    parser.add_argument("--clip-skip", type=int, default=1)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--max-grad-norm", type=float, default=1.0)
    parser.add_argument("--fp32", action="store_true", help="compute in fp32 instead of double precision")
    parser.add_argument("--free", action="store_true", help="go on from what PyTorch made of the adapter, not from the trace")
    parser.add_argument("--autocast", action="store_true", help="PyTorch in bf16")
    parser.add_argument("--report", action="store_true", help="without limits")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    paths = sorted(options.trace.glob("step-*.safetensors"))
    lines = [json.loads(line) for line in (options.trace / "trace.jsonl").read_text().splitlines()]
    step = load_file(paths[0])
    first = {k[len("before/") :]: v for k, v in step.items() if k.startswith("before/")}
    replay = Replay(options, first)
    named = {k[len("grad/") :] for k in step if k.startswith("grad/")}
    assert set(replay.parameters) == named, "other tensors than the adapter's have gradients"
    print("| step | loss | PyTorch's | relative | grad_norm | PyTorch's | relative |\n|" + "---|" * 7)
    for path, line in zip(paths, lines):
        replay.check(load_file(path), line)
    if options.free:
        replay.compare_ends(first)
    print(f"\n{len(paths)} steps, {len(named)} tensors; the largest error of any step:")
    limits, failed = FREE_LIMITS if options.free else LIMITS, False
    for name, value in replay.errors.items():
        bad = not options.report and not value <= limits[name]
        failed |= bad
        print(f"{name}: {value:.2e}" + ("" if options.report else f" (limit {limits[name]:.0e}){' TOO LARGE' if bad else ''}"))
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
