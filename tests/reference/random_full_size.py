"""A checkpoint with the names and shapes of another and random weights of about the size that training gives them: attention that looks at
something (of 1024 tokens at some 66), norms and biases that matter, no layer whose output vanishes. For check_full_size.py.

    python tests/reference/random_full_size.py LIKE.safetensors OUT.safetensors [SEED]
"""

import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SHARP = 1.5  # queries and keys deviate by this, scores of attention by about 2
QUERIES = ("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight", "attn_1.q.weight", "attn_1.k.weight")


def draw(name, like):
    if not like.dtype.is_floating_point or name == "alphas_cumprod":
        return like
    noise = torch.randn(like.shape)
    if "embedding." in name:
        out = 0.3 * noise
    elif like.dim() > 1:
        out = noise * (SHARP if name.endswith(QUERIES) else 0.9) / like[0].numel() ** 0.5
    elif name.endswith("bias"):
        out = 0.1 * noise
    else:
        out = 1 + 0.2 * noise
    return out.to(like.dtype)


def main():
    like, out = sys.argv[1:3]
    torch.manual_seed(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    with safe_open(like, "pt") as file:
        save_file({name: draw(name, file.get_tensor(name)) for name in file.keys()}, out)


if __name__ == "__main__":
    main()
