"""The three networks of the demo model: SD1.5's topology with narrow channels, and its schedule."""
import gzip
import os
import tempfile
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

SCALING = 0.18215
CONTEXT = 64
TOKENS = 77
VAE_CHANNELS = (64, 64, 64, 128)
UNET_CHANNELS = (64, 64, 128, 64)


def make_vae():
    """The autoencoder: 8 times smaller each way, 4 latent channels."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=VAE_CHANNELS,
        layers_per_block=2, norm_num_groups=32, sample_size=128, scaling_factor=SCALING,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)


def _carrier(j, group):
    """Which colour channel j carries and with which sign; neighbours in a norm group are a pair of signs."""
    return j // group % 3, 1 - 2 * (j % 2)


@torch.no_grad()
def _route(conv, width_in, group_in, group_out):
    """Let a convolution hand each colour on to the channels that carry it."""
    conv.weight.mul_(.3)
    for j in range(conv.weight.shape[0]):
        colour, sign = _carrier(j, group_out)
        source = next(i for i in range(width_in) if _carrier(i, group_in) == (colour, sign))
        conv.weight[j, source, conv.weight.shape[2] // 2, conv.weight.shape[3] // 2] += 1


@torch.no_grad()
def _gather(conv, group, gain, offset):
    """Let a last convolution add up (after SiLU) the channels of each colour: silu(x) - silu(-x) = x."""
    conv.weight.mul_(.3)
    width, middle = conv.weight.shape[1], conv.weight.shape[2] // 2
    for j in range(width):
        colour, sign = _carrier(j, group)
        conv.weight[colour, j, middle, middle] += sign * gain * 6 / width
    conv.bias[:3] += offset


@torch.no_grad()
def _spread(conv, group, gain, offset):
    """Let a first convolution put `gain` times each colour plus `offset` on its carriers."""
    conv.weight.mul_(.3)
    middle = conv.weight.shape[2] // 2
    for j in range(conv.weight.shape[0]):
        colour, sign = _carrier(j, group)
        conv.weight[j, colour, middle, middle] += sign * gain
        conv.bias[j] += sign * offset


@torch.no_grad()
def begin_linear(vae):
    """Start the autoencoder as one that passes the mean colour of each 8x8 block straight through.

    Residual branches are silent, scaling steps average and repeat, and pairs of channels of opposite sign carry
    the colours past the norms.  Training then has only the detail left to learn; from the usual start it spends
    a long time on grey pictures first.
    """
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            torch.nn.init.zeros_(module.weight)
        elif name.endswith("downsamplers.0.conv"):
            module.weight.mul_(.1)
            module.weight[:, :, :2, :2] += torch.eye(len(module.weight))[:, :, None, None] / 4
        elif name.endswith("upsamplers.0.conv"):
            module.weight.mul_(.1)
            module.weight[:, :, 1, 1] += torch.eye(len(module.weight))
    first, last = VAE_CHANNELS[0], VAE_CHANNELS[-1]
    _spread(vae.encoder.conv_in, first // 32, 1, 1.5)
    _route(vae.encoder.down_blocks[3].resnets[0].conv_shortcut, first, first // 32, last // 32)
    _gather(vae.encoder.conv_out, last // 32, 2, -2)
    _spread(vae.decoder.conv_in, last // 32, .5, 1)
    _route(vae.decoder.up_blocks[1].resnets[0].conv_shortcut, last, last // 32, first // 32)
    _gather(vae.decoder.conv_out, first // 32, 1.6, -1.5)
    for conv, size in ((vae.quant_conv, 8), (vae.post_quant_conv, 4)):
        conv.weight.copy_(torch.eye(size)[:, :, None, None])
    vae.quant_conv.bias[4:] = -4                  # little noise at first
    return vae


def make_unet():
    """The noise predictor."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2,
        block_out_channels=UNET_CHANNELS, cross_attention_dim=CONTEXT, attention_head_dim=8,
        norm_num_groups=32, use_linear_projection=False,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)


@torch.no_grad()
def begin_silent(unet):
    """Start the U-Net's residual branches and its output at zero, as the original does."""
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return unet


def make_text_encoder():
    """CLIP's text tower, two layers of one head."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=CONTEXT, intermediate_size=4 * CONTEXT, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=TOKENS, hidden_act="quick_gelu",
        projection_dim=CONTEXT, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407))


class UsedWords(torch.nn.Module):
    """An embedding table of which only the rows of the words in `used` are trained, and cost time."""

    def __init__(self, table, used):
        super().__init__()
        index = torch.full((len(table.weight),), len(used))
        index[used] = torch.arange(len(used))
        self.register_buffer("weight", table.weight.detach().clone())
        self.register_buffer("index", index)
        self.register_buffer("used", used)
        self.rows = torch.nn.Parameter(torch.cat([self.weight[used], torch.zeros(1, self.weight.shape[1])]))

    def forward(self, ids):
        at = self.index[ids]
        return torch.where((at < len(self.used))[..., None], F.embedding(at, self.rows), F.embedding(ids, self.weight))


def whole_table(state):
    """The state dict of a text encoder with UsedWords as that of a plain one."""
    state = dict(state)
    place = next(k for k in state if k.endswith("token_embedding.rows")).removesuffix("rows")
    rows, used = state.pop(place + "rows"), state.pop(place + "used")
    state.pop(place + "index")
    state[place + "weight"] = state[place + "weight"].clone()
    state[place + "weight"][used] = rows[:-1]
    return state


def _byte_symbols():
    """CLIP's 256 printable stand-ins for bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def make_tokenizer():
    """CLIP's tokenizer, built from the merges file inside the open_clip package."""
    import json
    from transformers import CLIPTokenizer
    folder = os.path.dirname(find_spec("open_clip").origin)
    with gzip.open(os.path.join(folder, "bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as f:
        merges = f.read().split("\n")[1:49152 - 256 - 2 + 1]
    symbols = _byte_symbols()
    words = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as tmp:
        vocab, rules = os.path.join(tmp, "vocab.json"), os.path.join(tmp, "merges.txt")
        with open(vocab, "w", encoding="utf-8") as f:
            json.dump({w: i for i, w in enumerate(words)}, f)
        with open(rules, "w", encoding="utf-8") as f:
            f.write("#version: 0.2\n" + "\n".join(merges) + "\n")
        return CLIPTokenizer(vocab, rules, pad_token="<|endoftext|>", model_max_length=TOKENS)


def tokenize(tokenizer, captions):
    """Token ids, [N, 77], padded with the end token."""
    return torch.tensor(tokenizer(list(captions), padding="max_length", max_length=TOKENS,
                                  truncation=True)["input_ids"])


def alphas_cumprod():
    """Stable Diffusion's noise schedule."""
    betas = torch.linspace(0.00085 ** .5, 0.012 ** .5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
