"""Makes tests/fixtures/lycoris/ with LyCORIS (lycoris-lora 4.1.3).

    python tests/reference/make_lycoris_fixtures.py

For every kind and option an adapter file over modules of a small model, as LyCORIS names and shapes its tensors (random values), and what
its own modules compute with it: outputs at strength 1, and the gradient of mean((y - target)^2) with respect to every tensor of the file.
At strength 0.6 the output is 0.4 of the bare layer's and 0.6 of the adapted one's: strength is linear for every kind (what webui does;
LyCORIS differs for DoRA, BOFT and rescaled OFT).
"""

import pathlib
import shutil

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import save_file

from make_lora_fixtures import BLOCK, make_text_encoder, make_unet

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "lycoris"
TRANSFORMER = BLOCK + "transformer_blocks.0."
LINEAR = [TRANSFORMER + "attn1.to_q", TRANSFORMER + "ff.net.2", "down_blocks.0.resnets.0.time_emb_proj"]
CONV1 = [BLOCK + "proj_in"]
CONV3 = ["down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"]
NORMS = [TRANSFORMER + "norm2", "down_blocks.0.resnets.0.norm1"]
TEXT = ["encoder.layers.0.mlp.fc1"]
TEXT_NORMS = ["encoder.layers.0.layer_norm2"]
ALL = LINEAR + CONV1 + CONV3

# file: (class, modules of the U-Net, arguments)
KINDS = {
    "locon": (LoConModule, ALL, dict(lora_dim=3, alpha=2)),
    "locon_tucker": (LoConModule, CONV3, dict(lora_dim=3, alpha=2, use_tucker=True)),
    "locon_rs": (LoConModule, LINEAR, dict(lora_dim=4, alpha=2, rs_lora=True)),
    "dora_input": (LoConModule, ALL, dict(lora_dim=3, alpha=2, weight_decompose=True, wd_on_out=False)),
    "dora_output": (LoConModule, ALL, dict(lora_dim=3, alpha=2, weight_decompose=True, wd_on_out=True)),
    "loha": (LohaModule, ALL, dict(lora_dim=2, alpha=1)),
    "loha_large": (LohaModule, ALL, dict(lora_dim=5, alpha=2)),
    "loha_tucker": (LohaModule, CONV3, dict(lora_dim=2, alpha=1, use_tucker=True)),
    "loha_dora": (LohaModule, ALL, dict(lora_dim=2, alpha=1, weight_decompose=True, wd_on_out=False)),
    "loha_tucker_dora": (LohaModule, CONV3, dict(lora_dim=2, alpha=1, use_tucker=True, weight_decompose=True, wd_on_out=False)),
    "lokr_full": (LokrModule, ALL, dict(lora_dim=100000, alpha=1, factor=2)),
    "lokr": (LokrModule, ALL, dict(lora_dim=1, alpha=2, factor=2)),
    "lokr_both": (LokrModule, ALL, dict(lora_dim=1, alpha=3, factor=4, decompose_both=True)),
    "lokr_tucker": (LokrModule, CONV3, dict(lora_dim=1, alpha=2, factor=2, use_tucker=True)),
    "lokr_dora": (LokrModule, ALL, dict(lora_dim=1, alpha=2, factor=2, weight_decompose=True, wd_on_out=False)),
    "lokr_tucker_dora": (LokrModule, CONV3, dict(lora_dim=1, alpha=2, factor=2, use_tucker=True, weight_decompose=True, wd_on_out=True)),
    "ia3": (IA3Module, ALL, dict()),
    "ia3_input": (IA3Module, ALL, dict(train_on_input=True)),
    "glora": (GLoRAModule, LINEAR + CONV1, dict(lora_dim=3, alpha=2)),
    "oft": (DiagOFTModule, ALL, dict(lora_dim=4)),
    "oft_constraint": (DiagOFTModule, ALL, dict(lora_dim=4, constraint=0.05)),
    "oft_rescaled": (DiagOFTModule, ALL, dict(lora_dim=4, constraint=1.0, rescaled=True)),
    "boft": (ButterflyOFTModule, ALL, dict(lora_dim=4)),
    "boft_constraint": (ButterflyOFTModule, ALL, dict(lora_dim=2, constraint=0.05, rescaled=True)),
    "full": (FullModule, ALL, dict()),
    "norm": (NormModule, NORMS, dict()),
}


def layers():
    torch.manual_seed(5)
    models = {"unet": make_unet(), "text_encoder": make_text_encoder()}
    for model in models.values():
        for p in model.parameters():
            p.data = torch.randn_like(p) * 0.3
            p.requires_grad_(False)
    found = {"unet/" + n: models["unet"].get_submodule(n) for n in ALL + NORMS}
    found |= {"text_encoder/text_model." + n: models["text_encoder"].get_submodule(n) for n in TEXT + TEXT_NORMS}
    return found


def flat_name(key):
    part, path = key.split("/")
    return ("lora_unet_" if part == "unet" else "lora_te_") + path.replace(".", "_")


def input_of(layer):
    if isinstance(layer, torch.nn.Conv2d):
        return torch.randn(2, layer.in_channels, 7, 6)
    if isinstance(layer, torch.nn.GroupNorm):
        return torch.randn(2, layer.num_channels, 5, 4)
    return torch.randn(2, 5, layer.weight.shape[-1])


def randomize(module):
    for name, p in module.named_parameters():
        if "org" in name:
            continue
        if name == "dora_scale":
            p.data *= 1 + 0.3 * torch.rand_like(p)
        elif name == "rescale":
            p.data = 1 + 0.3 * torch.randn_like(p)
        elif isinstance(module, FullModule):
            p.data = p.data + 0.3 * torch.randn_like(p)
        else:
            p.data = torch.randn_like(p) * 0.3


def file_name_of(module, name):
    """What the tensor of a parameter is called in the file."""
    return {"weight": "diff", "bias": "diff_b"}[name] if isinstance(module, FullModule) else name


def make(name, kind, modules, arguments, reference, base):
    file, out = {}, {}
    keys = ["unet/" + n for n in modules] + ["text_encoder/text_model." + n for n in (TEXT_NORMS if kind is NormModule else TEXT)]
    for key in keys:
        module = kind(flat_name(key), base[key], multiplier=1.0, **arguments)
        if kind is FullModule:  # before that its weight is not the sum, as saving assumes
            module.apply_to()
        randomize(module)
        y = module(reference["x/" + key])
        if "target/" + key not in reference:
            reference["target/" + key] = torch.randn_like(y)
        torch.nn.functional.mse_loss(y, reference["target/" + key]).backward()
        out["y/" + key] = y.detach()
        for part, tensor in module.state_dict().items():
            if "org" not in part:
                file[f"{flat_name(key)}.{part}"] = torch.as_tensor(tensor).detach().clone().contiguous()
        for part, p in module.named_parameters():
            if "org" not in part and p.grad is not None:
                out[f"grad/{flat_name(key)}.{file_name_of(module, part)}"] = p.grad.clone()
        if kind is FullModule:
            module.restore()
    save_file(file, OUT / f"{name}.safetensors")
    save_file({k: v.contiguous() for k, v in out.items()}, OUT / f"{name}_results.safetensors")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    base, reference = layers(), {}
    for key, layer in base.items():
        reference["weight/" + key] = layer.weight.detach().clone()
        if layer.bias is not None:
            reference["bias/" + key] = layer.bias.detach().clone()
        reference["x/" + key] = input_of(layer)
        reference["y/" + key] = layer(reference["x/" + key]).detach()
    for i, (name, (kind, modules, arguments)) in enumerate(KINDS.items()):
        torch.manual_seed(100 + i)
        make(name, kind, modules, arguments, reference, base)
    save_file({k: v.contiguous() for k, v in reference.items()}, OUT / "reference.safetensors")
    total = sum(f.stat().st_size for f in OUT.iterdir())
    print(OUT, len(list(OUT.iterdir())), "files", total, "bytes")


if __name__ == "__main__":
    main()
