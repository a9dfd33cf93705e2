"""Makes tests/fixtures/model_small/ (a diffusers folder) and tests/fixtures/models.safetensors with diffusers, transformers and PEFT.

    python tests/reference/make_model_fixtures.py

Stable Diffusion 1.5's topology with very narrow layers and random weights: the U-Net stored in fp16, the VAE in bf16, the text encoder in fp32.
What the models compute is computed in float64 from the weights as stored. The noise prediction, and the gradients of a LoRA over all three
kinds of layers in U-Net and text encoder, from the token ids to the mean squared error (adapter.safetensors, kohya names).
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
MODEL = FIXTURES / "model_small"
CONTEXT, VOCABULARY = 32, 64
# sample size, batch, tokens, timesteps
UNET_CASES = [((8, 8), 1, 77, [500.0]), ((9, 13), 1, 77, [0.0]), ((16, 8), 3, 77, [1.0, 371.5, 999.0]), ((5, 3), 2, 154, [17.0, 981.0])]
VAE_CASES = [((16, 16), 1), ((24, 40), 2), ((8, 8), 1)]
TARGETS = (
    r".*(attn\d\.to_(q|k|v)|attn\d\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|mid_block.*conv\d"
    r"|up_blocks\.1\.resnets\.0\.(conv1|time_emb_proj|conv_shortcut)|samplers\.0\.conv|conv_in|conv_out|time_embedding\.linear_1)"
)
TEXT_TARGETS = r".*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


def randomize(model, dtype):
    """Weights of about the size that training gives them, so that no layer's output vanishes; as the file will store them."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 1
            if "norm" in name:
                p.copy_(torch.randn_like(p) * 0.2 + ("weight" in name))
            elif "embedding" in name and "time" not in name:
                p.copy_(torch.randn_like(p) * 0.3)
            else:
                p.copy_(torch.randn_like(p) * (0.9 / fan_in**0.5 if p.dim() > 1 else 0.1))
    return model.to(dtype).eval()


def make_unet():
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=CONTEXT,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=2,
    )


def make_vae():
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def make_text_encoder():
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=CONTEXT,
            intermediate_size=4 * CONTEXT,
            num_hidden_layers=3,
            num_attention_heads=4,
            hidden_act="quick_gelu",
            eos_token_id=VOCABULARY - 1,
            bos_token_id=VOCABULARY - 2,
        )
    )


def save_model():
    shutil.rmtree(MODEL, ignore_errors=True)
    unet, vae, text = randomize(make_unet(), torch.float16), randomize(make_vae(), torch.bfloat16), randomize(make_text_encoder(), torch.float32)
    unet.save_pretrained(MODEL / "unet")
    vae.save_pretrained(MODEL / "vae")
    text.save_pretrained(MODEL / "text_encoder")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(MODEL / "scheduler")
    (MODEL / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}) + "\n")
    return unet.double(), vae.double(), text.double()


def uniform(*shape):
    return (torch.rand(shape, dtype=torch.float64) * 2 - 1).float().double()


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64).float().double()


def unet_cases(unet, out):
    for i, (size, n, tokens, timesteps) in enumerate(UNET_CASES):
        sample, context = normal(n, 4, *size), normal(n, tokens, CONTEXT)
        out[f"unet/{i}/sample"], out[f"unet/{i}/context"], out[f"unet/{i}/timesteps"] = sample, context, torch.tensor(timesteps)
        with torch.no_grad():
            out[f"unet/{i}/prediction"] = unet(sample, torch.tensor(timesteps), context).sample


def vae_cases(vae, out):
    for i, (size, n) in enumerate(VAE_CASES):
        image, latents = uniform(n, 3, *size), normal(n, 4, size[0] // 8, size[1] // 8)
        with torch.no_grad():
            posterior = vae.encode(image).latent_dist
            out[f"vae/{i}/image"], out[f"vae/{i}/mean"], out[f"vae/{i}/logvar"] = image, posterior.mean, posterior.logvar
            out[f"vae/{i}/latents"], out[f"vae/{i}/decoded"] = latents, vae.decode(latents).sample


def token_ids(n):
    ids = torch.randint(0, VOCABULARY - 2, (n, 77))
    ids[:, 0] = VOCABULARY - 2
    for i in range(n):
        ids[i, 5 + 30 * i :] = VOCABULARY - 1
    return ids


def text_cases(text, out):
    ids = token_ids(3)
    with torch.no_grad():
        states = text(ids, output_hidden_states=True)
        norm = text.final_layer_norm if hasattr(text, "final_layer_norm") else text.text_model.final_layer_norm
        out["text/ids"], out["text/last"], out["text/pooled"] = ids, states.last_hidden_state, states.pooler_output
        for skip in (2, 3):
            out[f"text/skip{skip}"] = norm(states.hidden_states[-skip])


def kohya_name(part, name):
    if part == "te" and not name.startswith("text_model"):
        name = "text_model." + name
    return f"lora_{part}_" + name.replace(".", "_")


def inject(model, targets):
    config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, rank_pattern={r".*conv\d?": 1}, alpha_pattern={r".*conv\d?": 0.5})
    inject_adapter_in_model(config, model)
    model.requires_grad_(False)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    for layer in layers.values():
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            fan_in = matrix.weight[0].numel()
            matrix.weight.data = (torch.randn(matrix.weight.shape) * 0.5 / fan_in**0.5).double()
            matrix.weight.requires_grad_(True)
    return layers


def lora_case(unet, text, out):
    layers = {"unet": inject(unet, TARGETS), "te": inject(text, TEXT_TARGETS)}
    sample, target, timesteps, ids = normal(2, 4, 7, 10), normal(2, 4, 7, 10), torch.tensor([250.0, 777.0]), token_ids(2)
    prediction = unet(sample, timesteps, text(ids).last_hidden_state).sample
    loss = torch.nn.functional.mse_loss(prediction, target)
    loss.backward()
    out["lora/sample"], out["lora/target"], out["lora/timesteps"], out["lora/ids"] = sample, target, timesteps, ids
    out["lora/prediction"], out["lora/loss"] = prediction, loss.reshape(1)
    adapter = {}
    for part, found in layers.items():
        for name, layer in found.items():
            key = kohya_name(part, name)
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            adapter[key + ".lora_down.weight"], adapter[key + ".lora_up.weight"] = down, up
            adapter[key + ".alpha"] = torch.tensor(layer.scaling["default"] * down.shape[0])
            out["grad/" + key + ".lora_down.weight"], out["grad/" + key + ".lora_up.weight"] = down.grad, up.grad
    save_file({k: v.detach().float().contiguous() for k, v in adapter.items()}, MODEL / "adapter.safetensors")


def main():
    torch.manual_seed(5)
    unet, vae, text = save_model()
    out = {}
    unet_cases(unet, out)
    vae_cases(vae, out)
    text_cases(text, out)
    lora_case(unet, text, out)
    save_file({k: v.detach().float().contiguous() for k, v in out.items()}, FIXTURES / "models.safetensors")
    files = [f for f in MODEL.rglob("*") if f.is_file()] + [FIXTURES / "models.safetensors"]
    for f in files:
        print(f.relative_to(FIXTURES), f.stat().st_size)
    print(sum(f.stat().st_size for f in files), "bytes;", len(load_file(MODEL / "adapter.safetensors")) // 3, "adapted modules")
    for k in ("unet/0/prediction", "vae/0/mean", "vae/0/decoded", "text/last", "lora/prediction", "lora/loss"):
        print(k, out[k].std(correction=0).item(), out[k].mean().item())


if __name__ == "__main__":
    main()
