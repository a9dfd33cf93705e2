"""Makes tests/fixtures/foreign/ with PEFT, OneTrainer and sd-scripts.

    python tests/reference/make_peft_fixtures.py ONETRAINER SD_SCRIPTS

The arguments are source trees of those two programs. For every kind and option an adapter as the program saves it (random values) over
modules of the small model of tests/fixtures/lycoris/reference.safetensors, and what the program computes with it module by module: outputs
at strength 1, and the gradient of mean((y - target)^2) with respect to the tensors of the file where vulora trains such files further.
"""

import importlib.util
import json
import math
import pathlib
import shutil
import sys
import types

import peft
import torch
from peft import BOFTConfig, IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, get_peft_model
from peft.tuners.boft.layer import BOFTLayer
from safetensors.torch import load_file, save_file

from make_lora_fixtures import make_text_encoder, make_unet
from make_lycoris_fixtures import ALL, CONV1, CONV3, LINEAR, TEXT, TRANSFORMER

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
OUT = FIXTURES / "foreign"
POINTWISE = LINEAR + CONV1
REFERENCE = load_file(FIXTURES / "lycoris" / "reference.safetensors")

# folder: (configuration of the U-Net's adapter, modules, whether gradients are taken)
PEFT = {
    "lora_dora": (LoraConfig(r=3, lora_alpha=2, use_dora=True), ALL, False),
    "lora_rs": (LoraConfig(r=3, lora_alpha=2, use_rslora=True, rank_pattern={"conv1": 2}, alpha_pattern={r"attn\d\.to_q": 5}), ALL, True),
    "loha": (LoHaConfig(r=2, alpha=1, rank_pattern={"proj_in": 3}, alpha_pattern={"conv1": 3}), ALL, True),
    "loha_effective": (LoHaConfig(r=2, alpha=1, use_effective_conv2d=True), CONV3, True),
    "lokr": (LoKrConfig(r=1, alpha=2, decompose_factor=2), ALL, True),
    "lokr_full": (LoKrConfig(r=100, alpha=30, decompose_factor=2, rank_pattern={"conv1": 50}), ALL, True),
    "lokr_both": (LoKrConfig(r=1, alpha=3, decompose_factor=4, decompose_both=True), ALL, True),
    "lokr_effective": (LoKrConfig(r=1, alpha=2, decompose_factor=2, use_effective_conv2d=True), CONV3, True),
    "ia3": (IA3Config(feedforward_modules=["ff.net.2", "conv1"]), ALL, False),
    "ia3_plain": (IA3Config(feedforward_modules=["ff.net.2", "conv1"]), [TRANSFORMER + "attn1.to_q", TRANSFORMER + "ff.net.2", CONV3[0]], True),
    "oft": (OFTConfig(r=0, oft_block_size=4), POINTWISE, False),
    "oft_exact": (OFTConfig(r=2, oft_block_size=0, use_cayley_neumann=False), POINTWISE, False),
    "oft_terms": (OFTConfig(r=0, oft_block_size=4, num_cayley_neumann_terms=3), POINTWISE, False),
    "oft_shared": (OFTConfig(r=0, oft_block_size=4, block_share=True), POINTWISE, False),
    "oft_constrained": (OFTConfig(r=0, oft_block_size=4, coft=True, eps=0.3), POINTWISE, False),
    "boft": (BOFTConfig(boft_block_size=4), ALL, False),
}


def with_reference_weights(model, prefix):
    for name, tensor in REFERENCE.items():
        what, key = name.split("/", 1)
        if what in ("weight", "bias") and key.startswith(prefix):
            getattr(model.get_submodule(key.removeprefix(prefix)), what).data.copy_(tensor)
    return model


def randomize(model):
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        with torch.no_grad():
            if "magnitude" in name:
                p.mul_(1 + 0.3 * torch.rand_like(p))
            elif "ia3_l" in name or "boft_s" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * 0.3)


def run(layer, key, out):
    y = layer(REFERENCE["x/" + key])
    torch.nn.functional.mse_loss(y, REFERENCE["target/" + key]).backward()
    out["y/" + key] = y.detach()


def save(tensors, name):
    save_file({k: v.contiguous() for k, v in tensors.items()}, OUT / name)


def file_key(name):
    return name.replace(".default", "")


def add_gradients(model, out):
    """Named as in the file. Where both of LoKr's factors are whole, vulora puts PEFT's scale into the first one."""
    scaled = {n for n, m in model.named_modules() if hasattr(m, "lokr_w1") and "default" in m.lokr_w1 and "default" in m.lokr_w2}
    for name, p in model.named_parameters():
        if p.grad is not None:
            module = name.split(".lokr_w1.")[0]
            out["grad/" + file_key(name)] = p.grad / (model.get_submodule(module).scaling["default"] if module in scaled else 1)


def hadamard_of_tucker(t1, w1a, w1b, t2, w2a, w2b, scale):
    """PEFT's own backward of this mixes its halves up (0.21.2); LyCORIS has mended the like."""
    halves = [torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, a, b in ((t1, w1a, w1b), (t2, w2a, w2b))]
    return halves[0] * halves[1] * scale


def make_peft(name, config, modules, gradients):
    out = {}
    config.target_modules = modules
    if isinstance(config, IA3Config):
        config.feedforward_modules = [m for m in modules if m.endswith(tuple(config.feedforward_modules))]
    model = get_peft_model(with_reference_weights(make_unet(), "unet/"), config)
    randomize(model)
    for module in modules:
        run(model.get_submodule("base_model.model." + module), "unet/" + module, out)
    if gradients:
        add_gradients(model, out)
    model.save_pretrained(OUT / name)  # after the run, which projects the constrained OFT's numbers
    (OUT / name / "README.md").unlink()
    config_file = OUT / name / "adapter_config.json"
    kept = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({k: v for k, v in kept.items() if v is not None and k != "auto_mapping"}, indent=1, sort_keys=True))
    save(out, f"{name}_results.safetensors")


def make_text_peft():
    """A text encoder's LoHa, named as transformers 5 has it."""
    model = get_peft_model(with_reference_weights(make_text_encoder(), "text_encoder/text_model."), LoHaConfig(r=2, alpha=3, target_modules=TEXT))
    randomize(model)
    out = {}
    for module in TEXT:
        run(model.get_submodule("base_model.model." + module), "text_encoder/text_model." + module, out)
    model.save_pretrained(OUT / "loha_text")
    (OUT / "loha_text" / "README.md").unlink()
    save(out, "loha_text_results.safetensors")


def make_butterfly():
    """BOFT of two stages, which PEFT computes only with its CUDA extension: its own permutations and Cayley transform, multiplied out."""
    file, out, own = {}, {}, object.__new__(BOFTLayer)
    for module in POINTWISE + CONV3:
        key = "unet/" + module
        weight = REFERENCE["weight/" + key]
        rows = weight.flatten(1)
        size, stages = 4, 2 if rows.shape[1] % 8 == 0 else 1
        blocks = rows.shape[1] // size
        values, scale = torch.randn(stages, blocks, size, size) * 0.3, 1 + 0.3 * torch.randn(rows.shape[0], 1)
        rotation = torch.eye(rows.shape[1])
        for i in range(stages):
            perm = BOFTLayer.perm2mat(own, BOFTLayer.block_butterfly_perm(own, rows.shape[1], blocks // 2**i, size // 2, stages - 1))
            rotation = perm @ torch.block_diag(*BOFTLayer.cayley_batch(own, values[i])) @ perm.T @ rotation
        turned = ((rotation @ rows.T).T * scale).reshape(weight.shape)
        x, bias = REFERENCE["x/" + key], REFERENCE.get("bias/" + key)
        conv = weight.dim() == 4
        stride = 2 if "downsamplers" in key else 1
        y = torch.nn.functional.conv2d(x, turned, bias, stride, weight.shape[-1] // 2) if conv else torch.nn.functional.linear(x, turned, bias)
        out["y/" + key] = y
        file[f"base_model.model.{module}.boft_R"] = values
        file[f"base_model.model.{module}.boft_s"] = scale.reshape(1, -1) if conv else scale
    folder = OUT / "boft_butterfly"
    folder.mkdir()
    save(file, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BOFT", "boft_block_size": 4, "boft_n_butterfly_factor": 2}))
    save(out, "boft_butterfly_results.safetensors")


def load_source(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layer_of(key):
    weight, bias = REFERENCE["weight/" + key], REFERENCE.get("bias/" + key)
    if weight.dim() == 4:
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], 2 if "downsamplers" in key else 1, weight.shape[2] // 2)
    else:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer.requires_grad_(False)


def make_onetrainer(root):
    """As OFTModule.forward: inputs of linear layers are turned, and weights of convolutions."""
    utils = load_source(root / "modules" / "module" / "oft_utils.py", "oft_utils")
    for name, options in {"onetrainer_oft": {}, "onetrainer_shared": {"block_share": True}, "onetrainer_scaled": {"oft_scaled": True}}.items():
        file, out = {}, {}
        for module in ALL:
            key = "unet/" + module
            layer = layer_of(key)
            columns, size = layer.weight[0].numel(), 4
            blocks = columns // size
            shared = options.get("block_share", False)
            oft = utils.OFTRotationModule(1 if shared else blocks, size * (size - 1) // 2, size, columns, **options)
            oft.weight.data = torch.randn_like(oft.weight) * 0.3
            if isinstance(layer, torch.nn.Linear):
                y = layer(oft(REFERENCE["x/" + key]))
            else:
                factor = 2 * math.sqrt(size - 1) if options.get("oft_scaled") else 1
                r = oft._cayley_batch(oft.weight / factor, size, True, 5)
                r = r.repeat(blocks, 1, 1) if shared else r
                w = torch.einsum("ork,rkc->orc", layer.weight.reshape(layer.weight.shape[0], blocks, size), r).reshape(layer.weight.shape)
                y = torch.nn.functional.conv2d(REFERENCE["x/" + key], w, layer.bias, layer.stride, layer.padding)
            out["y/" + key] = y.detach()
            for part, value in oft.state_dict().items():
                file["lora_unet_" + module.replace(".", "_") + ".oft_R." + part] = value
        save(file, f"{name}.safetensors")
        save(out, f"{name}_results.safetensors")


def make_onetrainer_loha():
    """Its LoHa keeps a convolution's second half in the convolution's shape (LoRAModule.py: LoHaModule, create_layer)."""
    file, out = {}, {}
    for module in ALL:
        key = "unet/" + module
        layer = layer_of(key)
        o, flat, rank, alpha = layer.weight.shape[0], "lora_unet_" + module.replace(".", "_"), 2, 3.0
        conv = layer.weight.dim() == 4
        a = [torch.randn(o, rank, *[1, 1] if conv else []) * 0.3 for _ in range(2)]
        b = [torch.randn(rank, *layer.weight.shape[1:]) * 0.3 for _ in range(2)]
        products = [x.flatten(1) @ y.flatten(1) for x, y in zip(a, b)]
        layer.weight.copy_(layer.weight + (products[0] * products[1] * alpha / rank).reshape(layer.weight.shape))
        out["y/" + key] = layer(REFERENCE["x/" + key])
        file |= {f"{flat}.hada_w{i + 1}_{part}": v[i] for part, v in (("a", a), ("b", b)) for i in range(2)}
        file[flat + ".alpha"] = torch.tensor(alpha)
    save(file, "onetrainer_loha.safetensors")
    save(out, "onetrainer_loha_results.safetensors")


def make_kohya(root):
    """sd-scripts' networks/oft.py, which imports more than its OFTModule needs."""
    for name in ("library", "library.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["library.utils"].setup_logging = lambda *a, **k: None
    for name in ("diffusers", "transformers", "einops"):
        assert importlib.util.find_spec(name), name
    oft = load_source(root / "networks" / "oft.py", "oft")
    for name, alpha in {"kohya_oft": 1e3, "kohya_constrained": 0.02}.items():
        file, out = {}, {}
        for module in ALL:
            key = "unet/" + module
            layer = layer_of(key)
            own = oft.OFTModule("oft", layer, 1.0, 2, alpha)
            own.oft_blocks.data = torch.randn_like(own.oft_blocks) * 0.3
            own.apply_to()
            run(layer, key, out)
            flat = "oft_unet_" + module.replace(".", "_")
            file |= {flat + ".oft_blocks": own.oft_blocks.detach().clone(), flat + ".alpha": own.alpha.clone()}
            out[f"grad/{flat}.oft_blocks"] = own.oft_blocks.grad
        save(file, f"{name}.safetensors")
        save(out, f"{name}_results.safetensors")


def make_residual():
    """LoRA and LoHa with LyCORIS' sparse residual and with a dense one, on the input axis of DoRA too: their weights, as the formats say."""
    for name in ("sparse", "dense", "sparse_dora"):
        file, out = {}, {}
        for module in ALL:
            key = "unet/" + module
            layer = layer_of(key)
            weight, flat = layer.weight, "lora_unet_" + module.replace(".", "_")
            o, columns, rank, alpha = weight.shape[0], weight[0].numel(), 2, 3.0
            kernel = weight.shape[2:]
            down, up = torch.randn(rank, weight.shape[1], *kernel) * 0.3, torch.randn(o, rank, *[1] * len(kernel)) * 0.3
            file |= {flat + ".lora_down.weight": down, flat + ".lora_up.weight": up, flat + ".alpha": torch.tensor(alpha)}
            rest = torch.randn(o, columns) * 0.3
            if name == "dense":
                file[flat + ".bias"] = rest.reshape(weight.shape).clone()
            else:
                rest = (rest * (rest.abs() > 0.4)).half()
                sparse = rest.to_sparse().coalesce()
                file[flat + ".bias_indices"] = sparse.indices().to(torch.int16).contiguous()
                file[flat + ".bias_values"] = sparse.values()
                file[flat + ".bias_size"] = torch.tensor(rest.shape).to(torch.int16)
                rest = rest.float()
            changed = weight + ((up.flatten(1) @ down.flatten(1) + rest) * alpha / rank).reshape(weight.shape)
            if name == "sparse_dora":
                norm = changed.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * len(kernel))
                scale = norm * (1 + 0.3 * torch.rand_like(norm))
                file[flat + ".dora_scale"] = scale
                changed = changed * scale / norm
            layer.weight.copy_(changed)
            out["y/" + key] = layer(REFERENCE["x/" + key])
        save(file, f"{name}.safetensors")
        save(out, f"{name}_results.safetensors")


def main():
    peft.tuners.loha.layer.make_weight_cp = hadamard_of_tucker
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    for i, (name, (config, modules, gradients)) in enumerate(PEFT.items()):
        torch.manual_seed(300 + i)
        make_peft(name, config, modules, gradients)
    torch.manual_seed(400)
    make_text_peft()
    make_butterfly()
    make_onetrainer(pathlib.Path(sys.argv[1]))
    make_kohya(pathlib.Path(sys.argv[2]))
    with torch.no_grad():
        make_residual()
        make_onetrainer_loha()
    files = [f for f in OUT.rglob("*") if f.is_file()]
    print(OUT, len(files), "files", sum(f.stat().st_size for f in files), "bytes")


if __name__ == "__main__":
    main()
