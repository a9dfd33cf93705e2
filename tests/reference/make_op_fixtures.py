"""Makes tests/fixtures/ops.safetensors with PyTorch.

    python tests/reference/make_op_fixtures.py

The list of cases that tests/ops/test_ops.c runs. A case is "<op>/<number>"; `args` are its sizes and flags, in the order of the function that
makes it below. Inputs are not stored: the test makes them by the same formula (multiples of 1/256 in [-1, 1), exact in fp16 and bf16 too).
Results are computed in float64 with autograd; of large ones a sample is stored (every step-th element, see `sampled`). Channels-last.
"""

import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "ops.safetensors"
SAMPLES = 256
# Which input it is; the stream of its random numbers.
X, W, BIAS, RESIDUAL, SHIFT, GAMMA, BETA, Q, K, V, DY, TARGET = range(12)


def mix(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def values(stream, *shape, scale=1.0, shift=0.0):
    """vulora's random_bits(1, stream, i), nine bits of it."""
    with np.errstate(over="ignore"):
        seed = mix(mix(np.array([1], np.uint64)) ^ np.uint64(stream))
        bits = mix(seed ^ np.arange(int(np.prod(shape)), dtype=np.uint64))
    v = (bits >> np.uint64(55)).astype(np.float64) / 256 - 1
    return torch.tensor(v.reshape(shape) * scale + shift, requires_grad=True)


def sampled(t):
    v = t.detach().numpy().reshape(-1)
    step = max(1, v.size // SAMPLES) | 1
    while math.gcd(step, t.shape[-1]) > 1:  # all channels get their turn
        step += 2
    return v[::step].astype(np.float32)


def differentiate(y, dy_scale, **inputs):
    dy = values(DY, *y.shape, scale=dy_scale)
    y.backward(dy)
    return {"y": y, **{"d" + name: t.grad for name, t in inputs.items() if t is not None}}


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


def linear(m, k, n, has_bias, has_residual, scale256):
    x, w = values(X, m, k), values(W, n, k)
    bias = values(BIAS, n) if has_bias else None
    residual = values(RESIDUAL, m, n) if has_residual else None
    y = scale256 / 256 * (x @ w.T)
    y = y + bias if has_bias else y
    y = y + residual if has_residual else y
    return differentiate(y, 1, x=x, w=w, residual=residual)


def conv2d(n, h, w, c, o, kernel, stride, before, after, has_bias, has_residual, has_shift):
    x, weight = values(X, n, h, w, c), values(W, kernel * kernel, o, c)
    y = F.pad(nchw(x), (before, after, before, after))
    y = nhwc(F.conv2d(y, weight.permute(1, 2, 0).reshape(o, c, kernel, kernel), stride=stride))
    residual = values(RESIDUAL, *y.shape) if has_residual else None
    shift = values(SHIFT, n, o) if has_shift else None
    y = y + values(BIAS, o) if has_bias else y
    y = y + residual if has_residual else y
    y = y + shift[:, None, None] if has_shift else y
    return differentiate(y, 1, x=x, w=weight, residual=residual, shift=shift)


def group_norm(n, h, w, c, groups, silu, mean256):
    x = values(X, n, h, w, c, shift=mean256 / 256)
    y = nhwc(F.group_norm(nchw(x), groups, values(GAMMA, c, shift=1.0), values(BETA, c), 1e-5))
    return differentiate(F.silu(y) if silu else y, 1, x=x)


def layer_norm(rows, c, mean256):
    x = values(X, rows, c, shift=mean256 / 256)
    return differentiate(F.layer_norm(x, (c,), values(GAMMA, c, shift=1.0), values(BETA, c), 1e-5), 1, x=x)


def trained_vector(stream, fixed, c, shift, frozen, computed):
    """A norm's scale or shift, and what its gradient is asked of: itself, or (computed) half of what is added to a fixed one."""
    trained = None if frozen else values(stream, c, shift=0.0 if computed else shift)
    if computed:
        return values(fixed, c, shift=shift) + (0 if frozen else 0.5 * trained), trained
    return values(stream, c, shift=shift) if frozen else trained, trained


def trained_norm(x, norm, frozen_x, frozen_gamma, frozen_beta, computed):
    c = x.shape[-1]
    gamma, trained_gamma = trained_vector(GAMMA, Q, c, 1.0, frozen_gamma, computed)
    beta, trained_beta = trained_vector(BETA, K, c, 0.0, frozen_beta, computed)
    return differentiate(norm(x, gamma, beta), 1, x=None if frozen_x else x, gamma=trained_gamma, beta=trained_beta)


def trained_group_norm(n, h, w, c, groups, silu, mean256, *frozen):
    norm = lambda x, gamma, beta: nhwc(F.group_norm(nchw(x), groups, gamma, beta, 1e-5))
    x = values(X, n, h, w, c, shift=mean256 / 256)
    return trained_norm(x, (lambda *inputs: F.silu(norm(*inputs))) if silu else norm, *frozen)


def trained_layer_norm(rows, c, mean256, *frozen):
    return trained_norm(values(X, rows, c, shift=mean256 / 256), lambda x, gamma, beta: F.layer_norm(x, (c,), gamma, beta, 1e-5), *frozen)


def attention(n, tq, tk, heads, width, causal, scale):
    """scale: of the inputs; large ones make sharp softmaxes."""
    c = heads * width
    q, k, v = values(Q, n, tq, c, scale=scale), values(K, n, tk, c, scale=scale), values(V, n, tk, c, scale=scale)
    split = lambda x: x.reshape(n, -1, heads, width).transpose(1, 2)
    s = split(q) @ split(k).transpose(2, 3) / width**0.5
    if causal:
        s = s.masked_fill(torch.ones(tq, tk, dtype=torch.bool).triu(1), -torch.inf)
    y = (s.softmax(-1) @ split(v)).transpose(1, 2).reshape(n, tq, c)
    return differentiate(y, 1, q=q, k=k, v=v)


def attention_self(n, tokens, heads, width, causal):
    """The same tensor for queries, keys and values: three gradients add up."""
    x = values(X, n, tokens, heads * width)
    split = lambda x: x.reshape(n, -1, heads, width).transpose(1, 2)
    y = F.scaled_dot_product_attention(split(x), split(x), split(x), is_causal=bool(causal))
    return differentiate(y.transpose(1, 2).reshape(n, tokens, -1), 1, x=x)


def activation(kind, count, scale):
    x = values(X, count, scale=scale)
    y = (F.silu(x), F.gelu(x), x * torch.sigmoid(1.702 * x))[kind]
    return differentiate(y, 1, x=x)


def geglu(rows, c, scale):
    x = values(X, rows, 2 * c, scale=scale)
    value, gate = x.chunk(2, -1)
    return differentiate(value * F.gelu(gate), 1, x=x)


def add(count):
    a, b = values(X, count), values(RESIDUAL, count)
    return differentiate(a + b, 1, x=a, residual=b)


def concat(rows, a, b):
    x, y = values(X, rows, a), values(RESIDUAL, rows, b)
    return differentiate(torch.cat([x, y], -1), 1, x=x, residual=y)


def upsample(n, h, w, c, oh, ow):
    x = values(X, n, h, w, c)
    return differentiate(nhwc(F.interpolate(nchw(x), size=(oh, ow), mode="nearest")), 1, x=x)


def sum_pixels(n, pixels, c):
    return {"y": values(X, n, pixels, c).sum(1)}


def mse(count):
    x = values(X, count)
    return differentiate(F.mse_loss(x, values(TARGET, count)).reshape(1), count, x=x)


def products(taps_a, taps_b, rows_a, columns_a, rows_b, columns_b, paired_rows, paired_columns, scale256):
    a, b = values(Q, taps_a, rows_a, columns_a), values(K, taps_b, rows_b, columns_b)
    row = "i" if paired_rows else "k"
    column = "j" if paired_columns else "l"
    out = "t" + "i" + ("" if paired_rows else "k") + "j" + ("" if paired_columns else "l")
    taps = max(taps_a, taps_b)
    y = torch.einsum(f"tij,t{row}{column}->{out}", a.expand(taps, -1, -1), b.expand(taps, -1, -1))
    y = y.reshape(taps, rows_a * (1 if paired_rows else rows_b), -1) * scale256 / 256
    return differentiate(y, 1, q=a, k=b)


def matmul(taps_a, taps_b, m, n, k, scale256):
    a, b = values(Q, taps_a, m, k), values(K, taps_b, k, n)
    y = scale256 / 256 * a @ b
    return differentiate(y if len(y) > 1 else y[0], 1, q=a, k=b)


def linear_blocks(m, blocks, k, n, has_residual, scale256):
    x, w = values(X, m, blocks * k), values(W, n, k)
    residual = values(RESIDUAL, m, blocks * n) if has_residual else None
    y = scale256 / 256 * (x.reshape(m, blocks, k) @ w.T).reshape(m, -1)
    return differentiate(y + residual if has_residual else y, 1, x=x, w=w, residual=residual)


def trained_bias(n, h, w, c, o, convolution):
    x, bias = values(X, n, h, w, c), values(BETA, o)
    weight = values(W, 9, o, c) if convolution else values(W, o, c)
    if convolution:
        y = nhwc(F.conv2d(nchw(x), weight.permute(1, 2, 0).reshape(o, c, 3, 3), padding=1))
    else:
        y = x @ weight.T
    return differentiate(y + bias, 1, x=x, w=weight, beta=bias)


def scale(n, tokens, c, has_w, a256, b256, has_residual, c256, has_bias, has_shift):
    x = values(X, n, tokens, c)
    w = values(GAMMA, c) if has_w else None
    residual = values(RESIDUAL, n, tokens, c) if has_residual else None
    bias = values(BETA, c) if has_bias else None
    shift = values(SHIFT, n, c) if has_shift else None
    y = (a256 / 256 + (b256 / 256 * w if has_w else 0)) * x
    y = y + c256 / 256 * residual if has_residual else y
    y = y + bias if has_bias else y
    y = y + shift[:, None] if has_shift else y
    return differentiate(y, 1, x=x, gamma=w, residual=residual, beta=bias, shift=shift)


def mix_blocks(n, h, w, m, l, k, blocks_first, has_residual, scale256):
    x = values(X, n * m, h, w, k) if blocks_first else values(X, n, h, w, m * k)
    blocks = x.reshape(n, m, h, w, k) if blocks_first else x.reshape(n, h, w, m, k).permute(0, 3, 1, 2, 4)
    factor = values(Q, l, m)
    y = scale256 / 256 * torch.einsum("lm,nmhwk->nhwlk", factor, blocks).reshape(n, h, w, l * k)
    residual = values(RESIDUAL, n, h, w, l * k) if has_residual else None
    return differentiate(y + residual if has_residual else y, 1, x=x, q=factor, residual=residual)


def split_blocks(n, h, w, blocks, k):
    x = values(X, n, h, w, blocks * k)
    return differentiate(x.reshape(n, h, w, blocks, k).permute(0, 3, 1, 2, 4).reshape(n * blocks, h, w, k), 1, x=x)


def turned(x, matrices, stride, transposed):
    rows, (blocks, size, _) = x.shape[0], matrices.shape
    columns = torch.arange(blocks * size)
    order = columns.reshape(-1, 2, stride).transpose(1, 2).reshape(-1) if stride else columns
    y = torch.einsum("gji,rgi->rgj" if transposed else "gij,rgi->rgj", matrices, x[:, order].reshape(rows, blocks, size))
    return y.reshape(rows, -1)[:, torch.argsort(order)]


def rotate(rows, blocks, size, stride, transposed):
    x, matrices = values(X, rows, blocks * size), values(Q, blocks, size, size)
    return differentiate(turned(x, matrices, stride, transposed), 1, x=x, q=matrices)


def rotate_stages(stages, rows, blocks, size, stride, transposed):
    x, matrices = values(X, rows, blocks * size), values(Q, stages, blocks, size, size, scale=0.5)
    y = x
    for stage in range(stages):
        y = turned(y, matrices[stage], stride << stage, transposed)
    return differentiate(y, 1, x=x, q=matrices)


def cayley(blocks, size, limit256):
    b = values(Q, blocks, size, size, scale=0.25)
    q = b - b.transpose(1, 2)
    if limit256 and q.norm() > limit256 / 256:
        q = q * (limit256 / 256 / q.norm())
    one = torch.eye(size, dtype=torch.float64)
    return differentiate((one + q) @ torch.linalg.inv(one - q), 1, q=b)


def dora(taps, out, columns, output_axis):
    w, d = values(W, taps, out, columns).detach(), values(Q, taps, out, columns, scale=0.5)
    magnitude = values(GAMMA, out if output_axis else columns)
    norm = (w + d).permute(1, 0, 2).reshape(out, -1).norm(dim=1) if output_axis else (w + d).reshape(-1, columns).norm(dim=0)
    return differentiate(magnitude / (norm + torch.finfo(torch.float32).eps), 1, q=d, gamma=magnitude)


def dora_factored(taps, out, columns, rank, output_axis, scale256):
    w = values(W, taps, out, columns).detach()
    left, right = values(Q, out, rank, scale=0.5), values(K, taps, rank, columns, scale=0.5)
    magnitude, v = values(GAMMA, out if output_axis else columns), w + scale256 / 256 * left @ right
    norm = v.permute(1, 0, 2).reshape(out, -1).norm(dim=1) if output_axis else v.reshape(-1, columns).norm(dim=0)
    return differentiate(magnitude / (norm + torch.finfo(torch.float32).eps), 1, q=left, k=right, gamma=magnitude)


def take(n, count, first, second):
    x = values(Q, n, count)
    return differentiate(x[first] + x[second], 1, q=x)


def computed_linear(m, rows_a, columns_a, rows_b, columns_b):
    x, a, b = values(X, m, columns_a * columns_b), values(Q, rows_a, columns_a), values(K, 1, rows_b, columns_b)
    return differentiate(0.5 * x @ (0.25 * torch.kron(a, b[0])).T, 1, x=x, q=a, k=b)


def computed_conv2d(n, h, w, rows_a, columns_a, rows_b, columns_b):
    x, a, b = values(X, n, h, w, columns_a * columns_b), values(Q, rows_a, columns_a), values(K, 9, rows_b, columns_b)
    weight = torch.stack([0.25 * torch.kron(a, tap) for tap in b])
    y = F.conv2d(nchw(x), weight.permute(1, 2, 0).reshape(rows_a * rows_b, -1, 3, 3), padding=1)
    return differentiate(nhwc(y), 1, x=x, q=a, k=b)


def choices(key, stream, places):
    """pcg4d (Jarzynski & Olano 2020) of (place, stream, key)."""
    m = np.uint64(0xFFFFFFFF)
    x, y, z, w = (np.asarray(v, np.uint64) * np.uint64(1664525) + np.uint64(1013904223) & m for v in (places, stream, *key))
    x = x + y * w & m
    y = y + z * x & m
    z = z + x * y & m
    w = w + y * z & m
    x, y, w = x ^ x >> np.uint64(16), y ^ y >> np.uint64(16), w ^ w >> np.uint64(16)
    return x + y * w & m


def dropout(n, tokens, c, of, stream, rate256, factor256):
    """of: every element, column of an image, column, everything."""
    x, key = values(X, n, tokens, c), (values(GAMMA, 2) * 256 + 256).detach().numpy()
    place = np.arange(n * tokens * c).reshape(n, tokens, c)
    image, column = place // (tokens * c), place % c
    place = [place, image * c + column, column, place * 0][of]
    keep = torch.tensor(choices(key, stream, place) >= np.uint64(rate256 * 2**24))
    return differentiate(x * keep * (factor256 / 256), 1, x=x)


def product_square_sum(taps, out, r, columns):
    up, down = values(Q, out, r), values(K, taps, r, columns)
    return {"y": (up @ down).square().sum().reshape(1)}


def square_sum(count):
    return {"y": values(Q, count).square().sum().reshape(1)}


def limit_norm(count, limit256, exponent256):
    """scale 0.5, and the norm is that of the parameter itself."""
    x = values(Q, count)
    norm = 0.5 * x.norm()
    return {"y": x * (limit256 / 256 / norm).clamp(max=1) ** (exponent256 / 256)}


GATED = [(1, 6, 5), (7, 6, 1), (3, 6, 10)]  # periods, ranks, inner
WINDOWS = [(0, 2), (2, 4), (0, 2), (0, 0), (4, 6), (2, 4)]


def gated_optimizer():
    """AdamW on parameters cut into ranks, each a parameter of its own that has no gradient in a step that leaves it out (as in sd-scripts'
    DyLoRA, networks/dylora.py); clipping to 0.5. Displacements at the end."""
    start = [values(230 + k, *shape) for k, shape in enumerate(GATED)]
    ranks = [[torch.nn.Parameter(p[:, r].detach().clone()) for r in range(6)] for p in start]
    every = [p for parts in ranks for p in parts]
    adamw = torch.optim.AdamW(every, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.02)
    out = {}
    for step, (begin, end) in enumerate(WINDOWS):
        for k, parts in enumerate(ranks):
            grad = values(240 + 10 * step + k, *GATED[k]).detach()
            for r, p in enumerate(parts):
                p.grad = grad[:, r].clone() if begin <= r < end else None
        torch.nn.utils.clip_grad_norm_(every, 0.5)
        adamw.step()
    for k, parts in enumerate(ranks):
        out[f"moved/{k}"] = torch.stack([p.detach() for p in parts], 1) - start[k]
    return out


def optimizer(max_norm):
    """Three AdamW steps on three parameters (the second with gradients that need no clipping); displacements after each."""
    shapes = (7,), (33, 20), (70001,)
    start = [values(200 + k, *shape) for k, shape in enumerate(shapes)]
    params = [torch.nn.Parameter(p.detach().clone()) for p in start]
    adamw = torch.optim.AdamW(params, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.02)
    out = {}
    for step in range(3):
        for k, p in enumerate(params):
            p.grad = values(210 + 10 * step + k, *p.shape, scale=2.0**-10 if step == 1 else 1.0).detach()
        norm = torch.nn.utils.clip_grad_norm_(params, max_norm if max_norm else torch.inf)
        adamw.step()
        out[f"norm/{step}"] = norm.reshape(1)
        for k, p in enumerate(params):
            out[f"moved/{step}/{k}"] = p - start[k]
            out[f"m/{step}/{k}"], out[f"v/{step}/{k}"] = (adamw.state[p][key].clone() for key in ("exp_avg", "exp_avg_sq"))
    return out


CASES = {
    linear: [
        (1, 1, 1, 0, 0, 256), (1, 5, 3, 1, 0, 256), (7, 33, 17, 1, 1, 256), (154, 48, 20, 0, 1, 128), (64, 64, 64, 1, 0, 256),
        (231, 40, 4, 0, 0, 256), (231, 4, 40, 0, 1, 192), (130, 320, 96, 1, 1, 256), (3, 1281, 130, 1, 0, 256), (300, 16, 1, 1, 1, 64),
        (2, 1100, 1000, 1, 1, 256), (2500, 24, 40, 0, 0, 256), (5, 3, 5, 1, 1, 256), (9, 321, 35, 1, 1, 128), (33, 656, 65, 1, 0, 256),
        (1030, 320, 4, 0, 0, 256), (1030, 4, 320, 0, 1, 256), (77, 17, 31, 1, 1, 256), (13, 640, 48, 0, 1, 256),
    ],
    conv2d: [
        (1, 8, 8, 4, 8, 3, 1, 1, 1, 1, 0, 0), (3, 5, 7, 3, 6, 3, 1, 1, 1, 1, 1, 1), (1, 9, 13, 12, 20, 3, 2, 1, 1, 1, 0, 0),
        (3, 9, 13, 8, 5, 3, 2, 0, 1, 1, 0, 0), (2, 8, 6, 16, 16, 3, 2, 0, 1, 0, 1, 0), (1, 1, 1, 8, 8, 3, 1, 1, 1, 1, 1, 1),
        (2, 6, 1, 5, 4, 3, 1, 1, 1, 0, 0, 1), (1, 1, 7, 4, 4, 3, 2, 1, 1, 1, 0, 0), (3, 4, 5, 7, 9, 1, 1, 0, 0, 1, 1, 1),
        (1, 17, 16, 36, 33, 3, 1, 1, 1, 0, 0, 0), (2, 16, 16, 64, 32, 3, 1, 1, 1, 1, 1, 1), (2, 7, 7, 6, 4, 1, 2, 0, 0, 1, 0, 0),
        (1, 31, 30, 4, 4, 3, 1, 1, 1, 1, 0, 0), (1, 6, 6, 1, 1, 3, 1, 1, 1, 1, 1, 0), (1, 12, 12, 8, 130, 3, 1, 1, 1, 1, 0, 1),
        (1, 96, 96, 60, 4, 3, 1, 1, 1, 1, 0, 0), (1, 96, 96, 4, 60, 3, 1, 1, 1, 1, 1, 0), (2, 3, 2, 700, 690, 3, 1, 1, 1, 1, 0, 1),
        (3, 9, 13, 40, 33, 3, 2, 1, 1, 1, 0, 1), (3, 10, 8, 20, 18, 3, 2, 0, 1, 1, 1, 0), (3, 7, 6, 40, 36, 1, 2, 0, 0, 1, 0, 1),
        (1, 37, 33, 20, 17, 3, 1, 1, 1, 1, 1, 0), (3, 1, 3, 17, 20, 3, 2, 1, 1, 1, 0, 0), (2, 5, 9, 330, 20, 3, 2, 1, 1, 1, 1, 1),
    ],
    group_norm: [
        (1, 4, 4, 8, 4, 0, 0), (3, 5, 7, 12, 3, 1, 0), (1, 1, 1, 16, 2, 1, 0), (2, 9, 13, 64, 32, 1, 128), (3, 1, 5, 32, 32, 0, 0),
        (1, 33, 31, 20, 4, 1, 512), (1, 64, 64, 16, 2, 0, 1024), (2, 3, 3, 30, 1, 1, 0), (1, 200, 300, 8, 2, 1, 1024), (1, 70, 61, 96, 8, 1, 256),
    ],
    layer_norm: [(1, 8, 0), (77, 64, 0), (3, 1, 0), (231, 33, 256), (5, 1280, 512), (130, 320, 64)],
    trained_group_norm: [
        (1, 4, 4, 8, 4, 0, 0, 0, 0, 0, 0), (3, 5, 7, 12, 3, 1, 0, 0, 0, 0, 1), (1, 1, 1, 16, 2, 1, 0, 0, 0, 0, 0), (2, 9, 13, 64, 32, 1, 128, 1, 0, 0, 1),
        (3, 1, 5, 32, 32, 0, 0, 0, 1, 0, 0), (1, 33, 31, 20, 4, 1, 512, 0, 0, 1, 1), (1, 64, 64, 16, 2, 0, 1024, 0, 0, 0, 1),
        (2, 3, 3, 30, 1, 1, 0, 1, 1, 0, 0), (1, 200, 300, 8, 2, 1, 1024, 0, 0, 0, 1), (1, 70, 61, 96, 8, 1, 256, 0, 0, 0, 1),
    ],
    trained_layer_norm: [
        (1, 8, 0, 0, 0, 0, 0), (77, 64, 0, 0, 0, 0, 1), (3, 1, 0, 0, 0, 0, 1), (231, 33, 256, 1, 0, 0, 1), (5, 1280, 512, 0, 1, 0, 0),
        (130, 320, 64, 0, 0, 1, 1), (2100, 20, 128, 0, 0, 0, 1),
    ],
    attention: [
        (1, 8, 8, 1, 8, 0, 1), (3, 7, 5, 2, 8, 0, 2), (1, 65, 77, 2, 40, 0, 1), (2, 150, 77, 1, 40, 0, 1), (1, 150, 150, 1, 64, 0, 2),
        (3, 77, 77, 2, 64, 1, 1), (1, 77, 77, 1, 80, 1, 2), (1, 33, 33, 1, 160, 0, 1), (2, 9, 154, 2, 80, 0, 1), (1, 1, 1, 1, 8, 0, 1),
        (1, 1, 77, 2, 40, 0, 1), (1, 130, 130, 1, 160, 0, 1), (1, 20, 20, 1, 512, 0, 1), (1, 40, 33, 1, 7, 0, 2), (1, 65, 65, 3, 4, 1, 8),
        (1, 300, 154, 1, 12, 0, 1), (1, 33, 40, 2, 16, 0, 16),
    ],
    attention_self: [(2, 35, 2, 8, 0), (1, 77, 1, 64, 1)],
    activation: [(kind, count, scale) for kind in range(3) for count, scale in ((1, 1), (1000, 4), (4099, 8), (9000, 1))],
    geglu: [(1, 1, 1), (7, 33, 4), (77, 64, 2), (130, 20, 8)],
    add: [(1,), (1001,), (9000,)],
    concat: [(1, 1, 1), (15, 8, 4), (117, 33, 20), (64, 64, 32), (9, 3, 130)],
    upsample: [
        (1, 4, 4, 8, 8, 8), (3, 5, 7, 6, 10, 14), (1, 5, 7, 4, 9, 13), (2, 1, 1, 5, 2, 2), (1, 2, 3, 4, 3, 5), (1, 3, 1, 1, 5, 1),
        (1, 6, 6, 4, 6, 6), (1, 7, 11, 3, 20, 31),
    ],
    sum_pixels: [(1, 1, 1), (3, 35, 20), (2, 1024, 8), (1, 117, 33)],
    mse: [(1,), (35,), (5000,), (70000,)],
    products: [
        (1, 1, 3, 5, 3, 5, 1, 1, 256), (1, 1, 2, 3, 4, 5, 0, 0, 128), (1, 1, 7, 2, 7, 3, 1, 0, 256), (1, 1, 3, 33, 2, 33, 0, 1, 256),
        (9, 9, 2, 5, 3, 5, 0, 1, 64), (1, 9, 2, 3, 4, 5, 0, 0, 256), (9, 1, 3, 2, 2, 4, 0, 0, 256), (9, 9, 4, 4, 4, 4, 0, 0, 256),
        (1, 1, 64, 4, 64, 4, 1, 0, 256), (1, 1, 1, 1, 1, 1, 0, 0, 256), (1, 1, 40, 60, 40, 60, 1, 1, 256),
    ],
    matmul: [
        (1, 1, 1, 1, 1, 256), (1, 1, 7, 5, 3, 128), (9, 1, 5, 6, 4, 256), (1, 9, 5, 6, 4, 64), (9, 9, 3, 33, 17, 256), (1, 1, 1, 40, 20, 256),
        (1, 1, 40, 1, 20, 256), (1, 1, 65, 70, 16, 256),
    ],
    linear_blocks: [(1, 1, 1, 1, 0, 256), (7, 3, 5, 4, 1, 128), (33, 8, 8, 12, 0, 256), (130, 4, 40, 20, 1, 256)],
    trained_bias: [(2, 3, 5, 6, 7, 0), (1, 9, 13, 8, 12, 1), (1, 20, 15, 33, 20, 0)],
    scale: [
        (1, 1, 1, 1, 256, 256, 0, 256, 0, 0), (2, 35, 20, 1, 0, 256, 1, 256, 1, 1), (3, 77, 33, 1, 128, 64, 1, 128, 0, 0),
        (1, 600, 64, 1, 256, 256, 0, 256, 1, 0), (2, 9, 8, 0, 192, 0, 1, 256, 1, 1), (1, 300, 6, 1, 0, 256, 0, 256, 0, 1),
    ],
    mix_blocks: [
        (1, 1, 1, 1, 1, 1, 0, 0, 256), (2, 5, 7, 4, 3, 6, 0, 1, 128), (2, 5, 7, 4, 3, 6, 1, 1, 256), (1, 33, 1, 8, 8, 40, 0, 0, 256),
        (3, 4, 5, 2, 16, 10, 1, 0, 256), (1, 13, 17, 5, 2, 33, 1, 0, 64),
    ],
    split_blocks: [(1, 1, 1, 1, 1), (2, 5, 7, 4, 3), (3, 4, 4, 8, 40)],
    rotate: [
        (1, 1, 1, 0, 0), (7, 3, 5, 0, 0), (35, 4, 8, 0, 1), (300, 2, 33, 0, 0), (20, 8, 4, 2, 1), (20, 8, 4, 8, 0), (600, 4, 6, 3, 1), (9, 4, 10, 20, 1),
    ],
    rotate_stages: [(1, 3, 2, 2, 1, 1), (2, 20, 4, 6, 3, 0), (3, 37, 8, 10, 5, 1), (4, 300, 16, 4, 2, 1), (2, 33, 4, 20, 10, 0), (2, 16, 3, 5, 0, 1)],
    cayley: [(1, 1, 0), (1, 2, 0), (3, 5, 0), (20, 16, 0), (4, 7, 64), (2, 33, 256), (3, 4, 2560), (1, 80, 0)],
    dora: [(1, 1, 1, 0), (1, 7, 5, 0), (1, 7, 5, 1), (9, 6, 10, 0), (9, 6, 10, 1), (1, 300, 40, 0), (1, 33, 200, 1), (9, 33, 17, 0)],
    dora_factored: [
        (1, 2, 2, 1, 0, 256), (1, 7, 5, 3, 0, 256), (1, 7, 5, 3, 1, 128), (9, 6, 10, 4, 0, 256), (9, 6, 10, 4, 1, 64), (1, 300, 40, 16, 0, 256),
        (1, 33, 200, 5, 1, 256), (9, 33, 20, 8, 1, 256), (9, 36, 17, 1, 0, 256), (1, 64, 1300, 16, 1, 512),
        (9, 16, 64, 4, 0, 256), (9, 16, 64, 4, 1, 256), (9, 32, 320, 16, 0, 256), (9, 32, 320, 16, 1, 256),
    ],
    take: [(1, 5, 0, 0), (4, 33, 1, 3), (3, 130, 2, 2)],
    computed_linear: [(1, 1, 1, 1, 1), (35, 2, 3, 5, 4), (77, 4, 4, 10, 5), (130, 8, 8, 8, 8)],
    computed_conv2d: [(1, 3, 3, 1, 1, 1, 1), (2, 5, 7, 2, 3, 4, 2), (1, 8, 8, 4, 4, 8, 8)],
    dropout: [
        (1, 1, 1, 0, 0, 128, 256), (2, 35, 20, 0, 3, 64, 512), (3, 77, 33, 0, 7, 26, 128), (2, 35, 20, 1, 5, 128, 512), (3, 9, 6, 1, 900, 77, 256),
        (2, 40, 64, 2, 1, 128, 256), (2, 5, 7, 2, 2, 200, 512), (2, 5, 8, 3, 1, 128, 256), (2, 5, 8, 3, 2, 128, 256), (2, 5, 7, 3, 7, 128, 256),
    ],
    product_square_sum: [(1, 1, 1, 1), (1, 40, 5, 33), (9, 33, 4, 20), (1, 300, 70, 130), (1, 3, 16, 5)],
    square_sum: [(1,), (35,), (70000,)],
    limit_norm: [(40, 128, 128), (40, 2560, 128), (5000, 256, 85)],
    gated_optimizer: [()],
    optimizer: [(0,), (0.5,)],
}


def main():
    out = {}
    for make, cases in CASES.items():
        for i, args in enumerate(cases):
            name = f"{make.__name__}/{i}/"
            out[name + "args"] = np.array(args, np.float32)
            out.update({name + key: sampled(t) for key, t in make(*args).items()})
    save_file(out, OUT)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
