"""The rules of the paper's 2026 successor in PyTorch, written from their formulas.

`soften` replaces the forward method of each module that a rule is for; values do not change.
"""

import functools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

RELU_T, SILU_T, GELU_T, SWISH_T, POOL_T = 0.6, 1.6, 1.0, 1.0, 0.3


class Gated(torch.autograd.Function):
    """A value whose cotangent is multiplied by a gate."""

    @staticmethod
    def forward(ctx, z, value, gate):
        ctx.save_for_backward(gate)
        return value.clone()

    @staticmethod
    def backward(ctx, cotangent):
        (gate,) = ctx.saved_tensors
        return cotangent * gate, None, None


def normal_cdf(z):
    return 0.5 * (1 + torch.erf(z / 2**0.5))


# By module: the activation, and its gate at the published temperature.
ACTIVATIONS = {
    nn.ReLU: (F.relu, lambda z: normal_cdf(z / RELU_T)),
    nn.SiLU: (F.silu, lambda z: torch.sigmoid(z / SILU_T)),
    nn.Hardswish: (F.hardswish, lambda z: F.relu6(z / SWISH_T + 3) / 6),
}


def gelu(module, z):
    """The rule is the same for both forms."""
    function = functools.partial(F.gelu, approximate=module.approximate)
    return activation(function, lambda z: normal_cdf(z / GELU_T), z)


def activation(function, gate, z):
    z = z.clone()  # torchvision computes in place
    return Gated.apply(z, function(z.detach()), gate(z.detach()))


def layer_norm(module, x):
    """Constant statistics: gamma times the cotangent over the deviation."""
    mean = x.mean(-1, keepdim=True).detach()
    deviation = (x.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
    return (x - mean) / deviation * module.weight + module.bias


def max_pool(module, x):
    """Softmax weights of each window, constant; padding takes part as zeros."""
    size, stride, pad = module.kernel_size, module.stride, module.padding
    hard = F.max_pool2d(x, size, stride, pad)
    n, channels, rows, columns = hard.shape
    cells = F.unfold(x, size, padding=pad, stride=stride)
    cells = cells.reshape(n, channels, size**2, rows, columns)
    weights = torch.softmax(cells / POOL_T, 2).detach()
    return with_value(hard, (weights * cells).sum(2))


def group_norm(module, x):
    """Constant statistics, for the reason given for layer normalisation."""
    groups = x.reshape(len(x), module.num_groups, -1)
    mean = groups.mean(-1, keepdim=True).detach()
    variance = groups.var(-1, unbiased=False, keepdim=True).detach()
    centred = ((groups - mean) / (variance + module.eps).sqrt()).reshape(x.shape)
    return centred * module.weight[:, None, None] + module.bias[:, None, None]


def layer_norm_2d(module, x):
    return layer_norm(module, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def divided(x, temperature):
    """x / T, with a derivative of 1."""
    return x + (x / temperature - x).detach()


def with_value(value, soft):
    """The value of one tensor with the derivative of another."""
    return value.detach() + soft - soft.detach()


def multihead_attention(forward, temperature, query, key, value, **options):
    """`through`: the derivative of an attention whose query and key inputs are divided by T."""
    hard, _ = forward(query, key, value, **options)
    cooled = (divided(query, temperature), divided(key, temperature))
    soft, _ = forward(*cooled, value, **options)
    return with_value(hard, soft), None


def pvt_attention(module, temperature, x, feat_size):
    """`detached`: timm's attention of PVTv2 with constant weights at the temperature."""
    n, tokens, channels = x.shape
    heads = module.num_heads
    query = module.q(x).reshape(n, tokens, heads, -1).permute(0, 2, 1, 3)
    reduced = x
    if module.sr is not None:
        image = x.permute(0, 2, 1).reshape(n, channels, *feat_size)
        reduced = module.norm(module.sr(image).reshape(n, channels, -1).permute(0, 2, 1))
    pair = module.kv(reduced).reshape(n, -1, 2, heads, channels // heads).permute(2, 0, 3, 1, 4)
    key, value = pair.unbind(0)
    logits = module.scale * query @ key.transpose(-2, -1)
    plain = torch.softmax(logits, -1).detach() @ value
    soft = torch.softmax(logits / temperature, -1).detach() @ value
    return module.proj(with_value(plain, soft).transpose(1, 2).reshape(n, tokens, channels))


def soften(network, attention_t=1.0):
    """Give each module of a network the backward pass of its rule; returns how many there are."""
    counts = {}

    def put(module, forward, kind):
        module.forward = forward
        counts[kind] = counts.get(kind, 0) + 1

    for module in network.modules():
        kind = type(module).__name__
        for family, (function, gate) in ACTIVATIONS.items():
            if isinstance(module, family):
                put(module, functools.partial(activation, function, gate), family.__name__)
        if isinstance(module, nn.GELU):
            put(module, functools.partial(gelu, module), "GELU")
        elif kind == "LayerNorm2d" and module.weight.ndim == 1:
            put(module, functools.partial(layer_norm_2d, module), "LayerNorm")
        elif isinstance(module, nn.LayerNorm):
            put(module, functools.partial(layer_norm, module), "LayerNorm")
        elif isinstance(module, nn.MaxPool2d):
            put(module, functools.partial(max_pool, module), kind)
        elif isinstance(module, nn.GroupNorm):
            put(module, functools.partial(group_norm, module), kind)
        elif isinstance(module, nn.MultiheadAttention):
            forward = module.forward
            put(module, functools.partial(multihead_attention, forward, attention_t), kind)
        elif kind == "Attention":
            put(module, functools.partial(pvt_attention, module, attention_t), kind)
    return counts


def randomise(network, seed):
    """Let no bias, scale or statistic be at a value that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and tensor.ndim <= 1:
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data += 0.4 * noise if (tensor >= 0).all() else 0.4 * (noise - 0.5)


def pullback(network, x, target):
    given = x.clone().requires_grad_()
    network(given)[:, target].sum().backward()
    return given.grad


def pga(network, x, target, steps, step_size):
    """Normalised ascent without a ball and without clipping."""
    here = x.clone()
    for _ in range(steps):
        field = pullback(network, here, target)
        norms = field.flatten(1).norm(dim=1).clamp(min=1e-20)
        here = here + step_size * field / norms[:, None, None, None]
    return here
