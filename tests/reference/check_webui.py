"""Loads adapters that vulora trained with stable-diffusion-webui's own Lora extension, and compares what they do there and here.

    python tests/reference/check_webui.py VULORA EXTENSION CHECKPOINT ADAPTER.safetensors...

EXTENSION is the folder extensions-builtin/Lora of a copy of stable-diffusion-webui, CHECKPOINT the single file that the adapters were trained on. Before the
comparison, random numbers are added to every tensor of an adapter, so that parts which training has hardly moved count too. webui's modules change the weights
of the checkpoint; vulora runs the result without an adapter, and the checkpoint with it. Exits with 1 when webui cannot match a key, skips a layer, or the outputs
differ at one of the strengths.
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import types
from unittest.mock import MagicMock

import torch
from model_parts import relative
from safetensors.torch import load_file, save_file

LIMIT = 5e-5  # of what the adapter changes; webui computes the changes in fp32 here
STRENGTHS = (1.0, 0.6)
CONSTANT = ("alpha", "on_input")
PARTS = {"model.diffusion_model.": "diffusion_model_", "cond_stage_model.transformer.": "transformer_"}


def open_extension(folder):
    """webui's networks.py, with the rest of webui replaced by stand-ins."""
    for name in ("gradio", "modules", "modules.shared", "modules.devices", "modules.sd_models", "modules.errors", "modules.scripts", "modules.sd_hijack",
                 "modules.cache", "modules.hashes", "modules.patches", "modules.extra_networks", "modules.textual_inversion",
                 "modules.textual_inversion.textual_inversion", "modules.models", "modules.models.sd3", "modules.models.sd3.mmdit"):
        sys.modules[name] = MagicMock(name=name)
    modules = sys.modules["modules"]
    for name in ("shared", "devices", "sd_models", "errors", "scripts", "sd_hijack", "cache", "hashes", "patches", "extra_networks", "models"):
        setattr(modules, name, sys.modules[f"modules.{name}"])
    modules.models.sd3.mmdit = sys.modules["modules.models.sd3.mmdit"]
    modules.models.sd3.mmdit.QkvLinear = type("QkvLinear", (), {})
    modules.devices.cpu = modules.devices.device = torch.device("cpu")
    modules.devices.dtype = torch.float32
    modules.sd_models.read_state_dict = load_file
    sys.path.insert(0, str(folder))
    import networks

    return networks, modules


def make_layer(weight, bias):
    """A layer with these weights; what kind a matrix or a vector belongs to does not matter to webui's changes of weights."""
    if weight.dim() == 4:
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=weight.shape[2] // 2)
    elif weight.dim() == 2:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    else:
        layer = torch.nn.LayerNorm(weight.shape[0])
    layer.weight = torch.nn.Parameter(weight.float())
    layer.bias = None if bias is None else torch.nn.Parameter(bias.float())
    return layer


def layers_of(checkpoint):
    """By webui's name: the layer, and its name in the checkpoint."""
    layers = {}
    for key, weight in checkpoint.items():
        for prefix, webui in PARTS.items():
            if key.startswith(prefix) and key.endswith(".weight") and weight.dim() in (1, 2, 4):
                name = key[: -len(".weight")]
                layers[webui + name[len(prefix) :].replace(".", "_")] = (make_layer(weight, checkpoint.get(name + ".bias")), name)
    return layers


def load_network(networks, modules, layers, adapter):
    """What webui makes of a file; the keys that it could not match."""
    unmatched = []
    networks.logging = types.SimpleNamespace(debug=lambda text: unmatched.append(text))
    modules.shared.sd_model = types.SimpleNamespace(network_layer_mapping={name: layer for name, (layer, _) in layers.items()}, is_sdxl=False)
    network = networks.load_network(adapter.stem, types.SimpleNamespace(filename=str(adapter)))
    return network, unmatched


@torch.no_grad()
def apply_network(network, layers, checkpoint, strength):
    """The checkpoint with the network merged into it, and the layers that webui would skip."""
    network.te_multiplier = network.unet_multiplier = strength
    merged, skipped = dict(checkpoint), []
    for name, module in network.modules.items():
        layer, key = layers[name]
        try:
            change, bias = module.calc_updown(layer.weight)
            merged[key + ".weight"] = layer.weight + change
            if bias is not None:
                merged[key + ".bias"] = layer.bias + bias
        except RuntimeError as error:
            skipped.append(f"{name}: {error}")
    return {k: v.detach().contiguous() for k, v in merged.items()}, skipped


def probe(program, folder, part, model, inputs, lora=None):
    source, result = f"{folder}/in.safetensors", f"{folder}/out.safetensors"
    save_file(inputs, source)
    command = [program, "probe", part, "--model", str(model), "--input", source, "--output", result, "--device", "cpu", "--precision", "fp32", "--quiet"]
    subprocess.run(command + (["--lora", lora] if lora else []), check=True)
    return load_file(result)


def inputs_of(checkpoint):
    context = next(v.shape[1] for k, v in checkpoint.items() if k.endswith("attn2.to_k.weight"))
    torch.manual_seed(1)
    ids = torch.full((2, 77), 49407)
    ids[:, 0] = 49406
    ids[:, 1:20] = torch.randint(0, 49000, (2, 19))
    unet = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([981.0, 13.0]), "encoder_hidden_states": torch.randn(2, 77, context)}
    return {"unet": (unet, "noise_pred"), "text-encoder": ({"input_ids": ids}, "last_hidden_state")}


def disturb(path, target):
    """Adds random numbers of a tensor's own size to it."""
    tensors = load_file(path)
    torch.manual_seed(0)
    for key, value in tensors.items():
        if key.rsplit(".", 1)[-1] not in CONSTANT:
            size = value.float().abs().mean().clamp(min=2e-3) * (0.05 if re.search(r"dora_scale|rescale", key) else 1.0)
            tensors[key] = (value.float() + size * torch.randn(value.shape)).to(torch.float32)
        else:
            tensors[key] = value.float()
    save_file(tensors, target)


def main():
    program, extension, model, *adapters = sys.argv[1:]
    networks, modules = open_extension(pathlib.Path(extension))
    checkpoint = {k: v.float() for k, v in load_file(model).items()}
    layers, failed = layers_of(checkpoint), False
    with tempfile.TemporaryDirectory() as folder:
        patched, disturbed = pathlib.Path(folder, "patched.safetensors"), pathlib.Path(folder, "adapter.safetensors")
        for adapter in adapters:
            disturb(adapter, disturbed)
            network, unmatched = load_network(networks, modules, layers, disturbed)
            for text in unmatched:
                print(f"{adapter}: {text[:400]}")
            failed |= bool(unmatched) or not network.modules
            worst = {}
            for strength in STRENGTHS:
                merged, skipped = apply_network(network, layers, checkpoint, strength)
                for text in skipped:
                    print(f"{adapter}: webui skips {text}")
                failed |= bool(skipped)
                save_file(merged, patched)
                for part, (given, name) in inputs_of(checkpoint).items():
                    there = probe(program, folder, part, patched, given)[name]
                    here = probe(program, folder, part, model, given, f"{disturbed}:{strength}")[name]
                    bare = probe(program, folder, part, model, given)[name]
                    worst[part, strength] = (relative(here, there), relative(bare, there))
                    failed |= not worst[part, strength][0] <= LIMIT
            text = ", ".join(f"{part} at {s}: {e:.1e} (of {c:.1e})" for (part, s), (e, c) in worst.items() if c > 0)
            print(f"{pathlib.Path(adapter).name}: {len(network.modules)} modules; {text}")
    raise SystemExit(failed)


main()
