"""Makes tests/fixtures/lora/ with PEFT, diffusers and safetensors.

    python tests/reference/make_lora_fixtures.py

One LoRA over modules of a small U-Net and a small text encoder, written in every spelling that vulora reads, and what PyTorch computes with
it, module by module (reference.safetensors). And the two hashes of sd-scripts for a file whose values tests/lora/test_save.c makes too.
"""

import hashlib
import json
import pathlib
import shutil

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "lora"
BLOCK = "down_blocks.0.attentions.0."
UNET = [
    BLOCK + "transformer_blocks.0.attn1.to_q",
    BLOCK + "transformer_blocks.0.attn1.to_out.0",
    BLOCK + "transformer_blocks.0.ff.net.2",
    BLOCK + "proj_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
]
TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.0.mlp.fc1"]
LDM = {
    BLOCK + "transformer_blocks.0.attn1.to_q": "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    BLOCK + "transformer_blocks.0.attn1.to_out.0": "input_blocks_1_1_transformer_blocks_0_attn1_to_out_0",
    BLOCK + "transformer_blocks.0.ff.net.2": "input_blocks_1_1_transformer_blocks_0_ff_net_2",
    BLOCK + "proj_in": "input_blocks_1_1_proj_in",
    "down_blocks.0.resnets.0.conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks_1_0_emb_layers_1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
}


def make_unet():
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def make_text_encoder():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=77
        )
    )


def unet_config():
    return LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=UNET,
        rank_pattern={"conv1": 2},
        alpha_pattern={"conv1": 3, r"attentions\.\d\.proj_in": 1},
    )


def text_config():
    return LoraConfig(r=3, lora_alpha=6, use_rslora=True, target_modules=TEXT)


def randomize(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn_like(p) * 0.3)


def reference(model, names, part, out):
    """What each module computes alone: at strength 1 and 0.6, and the gradients of mean((y - target)^2)."""
    modules = dict(model.named_modules())
    for name in names:
        layer = modules["base_model.model." + name]
        base = layer.get_base_layer()
        conv = base.weight.dim() == 4
        x = torch.randn((2, base.weight.shape[1], 7, 6) if conv else (2, 5, base.weight.shape[1]))
        key = part + "/" + ("text_model." if part == "text_encoder" else "") + name
        y = layer(x)
        target = torch.randn_like(y)
        torch.nn.functional.mse_loss(y, target).backward()
        out["weight/" + key] = base.weight.detach().clone()
        if base.bias is not None:
            out["bias/" + key] = base.bias.detach().clone()
        out["x/" + key], out["y/" + key], out["target/" + key] = x, y.detach(), target
        out["down_grad/" + key] = layer.lora_A["default"].weight.grad.clone()
        out["up_grad/" + key] = layer.lora_B["default"].weight.grad.clone()
        layer.scale_layer(0.6)
        out["y06/" + key] = layer(x).detach()
        layer.unscale_layer()


def lora_tensors(model, names):
    modules = dict(model.named_modules())
    for name in names:
        layer = modules["base_model.model." + name]
        yield (name, layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone(), layer.scaling["default"])


def kohya(unet, text, spell_unet, te_prefix):
    """Shapes and alphas as the loosest writers have them: 2-D for a 1x1 convolution, 4-D for a linear layer, int64 and [1] alphas."""
    out = {}
    for model, names, spell in ((unet, UNET, spell_unet), (text, TEXT, lambda n: te_prefix + "text_model_" + n.replace(".", "_"))):
        for name, down, up, scale in lora_tensors(model, names):
            flat, alpha = spell(name), torch.tensor(scale * down.shape[0])
            if name.endswith("proj_in"):
                down, up, alpha = down.flatten(1), up.flatten(1), alpha.reshape(1)
            if name.endswith("to_q"):
                down, up = down[:, :, None, None], up[:, :, None, None]
            if name.endswith("ff.net.2"):
                alpha = alpha.to(torch.int64)
            out.update({flat + ".lora_down.weight": down, flat + ".lora_up.weight": up, flat + ".alpha": alpha})
    return {k: v.contiguous() for k, v in out.items()}


def diffusers_tensors(model):
    state = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(model).items()}
    return convert_state_dict_to_diffusers(state)


def processor(unet):
    """The oldest diffusers form: attention only, no alpha, so the scale is folded into `up`."""
    out = {}
    for name, down, up, scale in lora_tensors(unet, UNET):
        if ".attn1." in name:
            stem, leaf = name.replace(".to_out.0", ".to_out").rsplit(".", 1)
            key = f"unet.{stem}.processor.{leaf}_lora"
            out.update({key + ".down.weight": down, key + ".up.weight": up * scale})
    return out


def tucker(unet, out):
    """LoCon with lora_mid, at strength 1, by its dense weight: D[o, i, y, x] = sum over n, p of mid[n, p, y, x] up[o, n] down[p, i]."""
    modules, file = dict(unet.named_modules()), {}
    for name in ("down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"):
        base = modules["base_model.model." + name].get_base_layer()
        flat, rank = "lora_unet_" + name.replace(".", "_"), 3
        down, up = torch.randn(rank, base.in_channels, 1, 1), torch.randn(base.out_channels, rank, 1, 1)
        mid, alpha = torch.randn(rank, rank, 3, 3), torch.tensor(2.0)
        file |= {flat + ".lora_down.weight": down, flat + ".lora_up.weight": up, flat + ".lora_mid.weight": mid, flat + ".alpha": alpha}
        dense = torch.einsum("npyx,on,pi->oiyx", mid, up[:, :, 0, 0], down[:, :, 0, 0]) * alpha / rank
        x = out["x/unet/" + name]
        out["y_tucker/unet/" + name] = torch.nn.functional.conv2d(
            x, base.weight + dense, base.bias, stride=base.stride, padding=base.padding
        ).detach()
    save_file(file, OUT / "tucker.safetensors")


def value(tensor_index, elements):
    i = torch.arange(elements, dtype=torch.int64)
    return (((i * 37 + tensor_index * 101) % 251).to(torch.float32) / 256 - 0.5).to(torch.float16)


def hashes():
    """sd-scripts' precalculate_safetensors_hashes on 12 linear modules of 320 -> 320 at rank 80: over 1 MiB, so that the old hash sees data."""
    tensors = {}
    for i in range(12):
        flat = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn{1 + i // 6}_module_{i % 6}"
        tensors[flat + ".lora_down.weight"] = value(2 * i, 80 * 320).reshape(80, 320)
        tensors[flat + ".lora_up.weight"] = value(2 * i + 1, 320 * 80).reshape(320, 80)
        tensors[flat + ".alpha"] = torch.tensor(8.0, dtype=torch.float16)
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "80",
        "ss_network_alpha": "8.0",
        "ss_output_name": 'Käthe "of" \\ mine\n\t2',
        "ss_tag_frequency": json.dumps({"10_käthe": {"käthe": 3, "a dog": 1}}),
    }
    blob = save(tensors, metadata)
    header = int.from_bytes(blob[:8], "little")
    model = hashlib.sha256(blob[8 + header :]).hexdigest()
    legacy = hashlib.sha256(blob[0x100000:0x110000]).hexdigest()[:8]
    (OUT / "hashes.txt").write_text(f"{model} {legacy}\n")


def main():
    torch.manual_seed(3)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    unet, text = get_peft_model(make_unet(), unet_config()), get_peft_model(make_text_encoder(), text_config())
    randomize(unet)
    randomize(text)
    out = {}
    reference(unet, UNET, "unet", out)
    reference(text, TEXT, "text_encoder", out)
    tucker(unet, out)
    save_file({k: v.contiguous() for k, v in out.items()}, OUT / "reference.safetensors")

    unet.save_pretrained(OUT / "peft" / "unet")
    text.save_pretrained(OUT / "peft" / "text_encoder")
    for readme in OUT.glob("peft/*/README.md"):
        readme.unlink()
    StableDiffusionPipeline.save_lora_weights(
        OUT / "diffusers",
        unet_lora_layers=diffusers_tensors(unet),
        text_encoder_lora_layers=diffusers_tensors(text),
        unet_lora_adapter_metadata=unet_config().to_dict(),
        text_encoder_lora_adapter_metadata=text_config().to_dict(),
    )
    tagged = {"format": "pt"}
    save_file(kohya(unet, text, lambda n: "lora_unet_" + n.replace(".", "_"), "lora_te_"), OUT / "kohya.safetensors", tagged)
    save_file(kohya(unet, text, lambda n: "lora_unet_" + LDM[n], "lora_te1_"), OUT / "ldm.safetensors", tagged)
    save_file(processor(unet), OUT / "processor.safetensors")
    hashes()
    for f in sorted(OUT.rglob("*")):
        if f.is_file():
            print(f.relative_to(OUT), f.stat().st_size)


if __name__ == "__main__":
    main()
