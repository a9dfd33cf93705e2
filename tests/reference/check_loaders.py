"""Loads adapters that vulora trained with the very code of stable-diffusion-webui or ComfyUI, and compares what they do there and here.

    python tests/reference/check_loaders.py VULORA webui|comfyui FOLDER CHECKPOINT ADAPTER.safetensors...

FOLDER is extensions-builtin/Lora of a copy of stable-diffusion-webui, or a copy of ComfyUI (lora.py and weight_adapter/ in its folder comfy/ are enough); CHECKPOINT the
single file that the adapters were trained on. Before the comparison, random numbers are added to every tensor of an adapter, so that parts which training has hardly
moved count too. The program's code changes the weights of the checkpoint; vulora runs the result without an adapter, and the checkpoint with it. Exits with 1 when the
program leaves a key or a layer out, or the outputs differ at one of the strengths.
"""

import logging
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

LIMIT = 5e-5
CONSTANT = ("alpha", "on_input")
PARTS = {"model.diffusion_model.": "diffusion_model_", "cond_stage_model.transformer.": "transformer_"}


def stand_in(names):
    """Modules of a program that are imported, but not needed."""
    for name in names:
        sys.modules[name] = MagicMock(name=name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])


class Webui:
    """Its extension Lora, with the rest of it replaced."""

    strengths = (1.0, 0.6)

    def __init__(self, folder):
        inner = "shared devices sd_models errors scripts sd_hijack cache hashes patches extra_networks textual_inversion textual_inversion.textual_inversion"
        names = [f"modules.{name}" for name in (inner + " models models.sd3 models.sd3.mmdit").split()]
        stand_in(["gradio", "modules", *names])
        self.modules = sys.modules["modules"]
        self.modules.models.sd3.mmdit.QkvLinear = type("QkvLinear", (), {})
        self.modules.devices.cpu = self.modules.devices.device = torch.device("cpu")
        self.modules.devices.dtype = torch.float32
        self.modules.sd_models.read_state_dict = load_file
        sys.path.insert(0, folder)
        import networks

        self.networks = networks

    def load(self, layers, path):
        self.complaints = []
        self.networks.logging = types.SimpleNamespace(debug=self.complaints.append)
        mapping = {name: layer for name, (layer, _) in layers.items()}
        self.modules.shared.sd_model = types.SimpleNamespace(network_layer_mapping=mapping, is_sdxl=False)
        self.network = self.networks.load_network(path.stem, types.SimpleNamespace(filename=str(path)))
        return len(self.network.modules)

    def changed(self, layers, strength):
        """Changed tensors, by their names in the checkpoint."""
        self.network.te_multiplier = self.network.unet_multiplier = strength
        tensors = {}
        for name, module in self.network.modules.items():
            layer, key = layers[name]
            try:
                change, bias = module.calc_updown(layer.weight)
            except RuntimeError as error:
                self.complaints.append(f"skips {name}: {error}")
                continue
            tensors[key + ".weight"] = layer.weight + change
            if bias is not None:
                tensors[key + ".bias"] = layer.bias + bias
        return tensors


class Complaints(logging.Handler):
    def __init__(self, texts):
        super().__init__(logging.WARNING)
        self.emit = lambda record: texts.append(record.getMessage())


class ComfyUI:
    strengths = (1.0,)  # of OFT and BOFT it applies any other twice

    def __init__(self, folder):
        sys.path.insert(0, folder)
        package = types.ModuleType("comfy")
        package.__path__ = [f"{folder}/comfy"]
        sys.modules["comfy"] = package
        stand_in(["comfy.utils", "comfy.model_management", "comfy.model_base"])
        package.model_management.cast_to_device = lambda tensor, device, dtype, copy=False: tensor.to(device, dtype, copy=copy)
        import comfy.lora

        self.lora = comfy.lora

    def load(self, layers, path):
        self.complaints = []
        logging.getLogger().handlers = [Complaints(self.complaints)]
        flat = flat_names({key for _, key in layers.values()})
        self.patches = self.lora.load_lora(load_file(path), {name: f"{key}.weight" for name, key in flat.items()})
        return len(self.patches)

    def changed(self, layers, strength):
        tensors = {f"{key}.{part}": getattr(layer, part) for layer, key in layers.values() for part in ("weight", "bias")}
        return {k: self.lora.calculate_weight([(strength, patch, 1.0, None, None)], tensors[k].clone(), k) for k, patch in self.patches.items()}


PROGRAMS = {"webui": Webui, "comfyui": ComfyUI}


def flat_names(keys):
    """By kohya's name, the module's name in the checkpoint."""
    inner = {"in_layers.2": "conv1", "out_layers.3": "conv2", "in_layers.0": "norm1", "out_layers.0": "norm2", "emb_layers.1": "time_emb_proj"}
    inner["skip_connection"] = "conv_shortcut"
    blocks = {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out", "time_embed.0": "time_embedding_linear_1"}
    blocks["time_embed.2"] = "time_embedding_linear_2"
    for i in range(4):
        for j in range(2):
            blocks |= {f"input_blocks.{1 + 3 * i + j}.{k}": f"down_blocks_{i}_{what}_{j}" for k, what in enumerate(("resnets", "attentions"))}
        for j in range(3):
            blocks |= {f"output_blocks.{3 * i + j}.{k}": f"up_blocks_{i}_{what}_{j}" for k, what in enumerate(("resnets", "attentions"))}
        blocks[f"input_blocks.{3 + 3 * i}.0.op"] = f"down_blocks_{i}_downsamplers_0_conv"
        blocks[f"output_blocks.{2 + 3 * i}.{2 if i else 1}.conv"] = f"up_blocks_{i}_upsamplers_0_conv"
    blocks |= {"middle_block.0": "mid_block_resnets_0", "middle_block.1": "mid_block_attentions_0", "middle_block.2": "mid_block_resnets_1"}
    flat = {}
    for key in keys:
        if key.startswith("cond_stage_model.transformer."):
            flat["lora_te_" + key[len("cond_stage_model.transformer.") :].replace(".", "_")] = key
            continue
        name = key[len("model.diffusion_model.") :]
        block = max((b for b in blocks if name == b or name.startswith(b + ".")), key=len)
        rest = name[len(block) + 1 :]
        flat["_".join(["lora_unet", blocks[block], *([inner.get(rest, rest).replace(".", "_")] if rest else [])])] = key
    return flat


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


@torch.no_grad()
def main():
    program, loader, loader_folder, model, *adapters = sys.argv[1:]
    loader = PROGRAMS[loader](loader_folder)
    checkpoint = {k: v.float() for k, v in load_file(model).items()}
    layers, failed = layers_of(checkpoint), False
    with tempfile.TemporaryDirectory() as folder:
        patched, disturbed = pathlib.Path(folder, "patched.safetensors"), pathlib.Path(folder, "adapter.safetensors")
        for adapter in adapters:
            disturb(adapter, disturbed)
            count, errors = loader.load(layers, disturbed), []
            for strength in loader.strengths:
                save_file({k: v.detach().contiguous() for k, v in (checkpoint | loader.changed(layers, strength)).items()}, patched)
                for part, (given, name) in inputs_of(checkpoint).items():
                    there = probe(program, folder, part, patched, given)[name]
                    here = probe(program, folder, part, model, given, f"{disturbed}:{strength}")[name]
                    change = relative(probe(program, folder, part, model, given)[name], there)
                    errors.append(relative(here, there))
                    print(f"{pathlib.Path(adapter).stem}: {count} modules, {part} at {strength}: {errors[-1]:.1e}, of a change of {change:.1e}")
            for text in loader.complaints:
                print(f"{adapter}: {text[:400]}")
            failed |= bool(loader.complaints) or not count or not max(errors) <= LIMIT
    raise SystemExit(failed)


main()
