"""Parts of a model in diffusers and transformers for the checking scripts here, from a diffusers folder or from a single-file checkpoint in
the original layout of any width; adapters by peft."""

import pathlib
import sys

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "pytorch"))
import peer  # noqa: E402: it knows single files

TEXT = "cond_stage_model.transformer.text_model."
# scheduler/scheduler_config.json of Stable Diffusion 1.5
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


def relative(value, expected):
    """Relative L2 error."""
    value, expected = value.double().flatten(), expected.double().flatten()
    return (torch.linalg.vector_norm(value - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-30)).item()


def ready(model, dtype):
    return model.to(dtype).eval().requires_grad_(False)


def load_unet(path, dtype):
    if path.is_dir():
        return ready(UNet2DConditionModel.from_pretrained(path / "unet"), dtype)
    return peer.load(path, "unet", dtype).eval()


def load_vae(path, dtype):
    if path.is_dir():
        return ready(AutoencoderKL.from_pretrained(path / "vae"), dtype)
    return peer.load(path, "vae-decode", dtype).eval()


def load_text_encoder(path, dtype):
    if path.is_dir():
        return ready(CLIPTextModel.from_pretrained(path / "text_encoder"), dtype)
    tensors = {k.removeprefix(TEXT): v for k, v in peer.read_part(path, TEXT).items() if not k.endswith("position_ids")}
    vocabulary, width = tensors["embeddings.token_embedding.weight"].shape
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=len(tensors["encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=sum(k.endswith("mlp.fc1.bias") for k in tensors),
            num_attention_heads=width // 64,  # as CLIP's; a single file does not say it
            hidden_act="quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )
    getattr(model, "text_model", model).load_state_dict(tensors)
    return ready(model, dtype)


def text_states(encoder, ids, clip_skip=1):
    output = encoder(ids, output_hidden_states=True)
    return getattr(encoder, "text_model", encoder).final_layer_norm(output.hidden_states[-clip_skip])


def load_scheduler(path, kind=DDPMScheduler):
    """A folder's own settings, or those of Stable Diffusion 1.5."""
    if path.is_dir():
        return kind.from_pretrained(path / "scheduler")
    return kind.from_config(SCHEDULER)


def mean_squared_error(unet, alphas, latents, noise, timestep, states):
    """Of the noise prediction: the loss that is trained."""
    kept = alphas[timestep.long()].view(-1, 1, 1, 1).to(latents.dtype)
    predicted = unet(kept.sqrt() * latents + (1 - kept).sqrt() * noise, timestep.long(), states).sample
    return torch.nn.functional.mse_loss(predicted.to(noise.dtype), noise)


def add_lora(model, prefix, values):
    """Adds peft's layers where `values` has some, with these values (kohya's names). Returns {name in `values`: parameter}."""
    # Newer releases of transformers have no `text_model` in their module names.
    missing = "text_model_" if prefix == "lora_te_" and not hasattr(model, "text_model") else ""
    paths = {prefix + missing + name.replace(".", "_"): name for name, _ in model.named_modules()}
    flat = sorted(key.rsplit(".", 1)[0] for key in values if key.startswith(prefix) and key.endswith(".alpha"))
    if not flat:
        return {}
    unknown = [name for name in flat if name not in paths]
    assert not unknown, f"the model has no {unknown}"
    ranks = {paths[name]: values[name + ".lora_down.weight"].shape[0] for name in flat}
    alphas = {paths[name]: values[name + ".alpha"].item() for name in flat}
    config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alphas, lora_alpha=1, r=1)
    inject_adapter_in_model(config, model)
    model.requires_grad_(False)
    parameters, modules, dtype = {}, dict(model.named_modules()), next(model.parameters()).dtype
    for name in flat:
        layer = modules[paths[name]]
        assert layer.scaling["default"] == alphas[paths[name]] / ranks[paths[name]]
        for part, factor in (("lora_down", layer.lora_A), ("lora_up", layer.lora_B)):
            key, weight = f"{name}.{part}.weight", factor["default"].weight
            weight.data = values[key].reshape(weight.shape).to(dtype)
            parameters[key] = weight.requires_grad_(True)
    return parameters


def overall(pairs):
    """Relative error of all tensors together, and of the worst one: tensors that are next to nothing are measured against all."""
    values, references = (torch.cat([p[i].double().flatten() for p in pairs]) for i in (0, 1))
    floor = 1e-4 * torch.linalg.vector_norm(references)
    worst = max(((v.double() - e.double()).norm() / e.double().norm().clamp_min(floor)).item() for v, e in pairs)
    return relative(values, references), worst
