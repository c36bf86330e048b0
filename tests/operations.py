"""Every supported operation, as modules and inputs that hypothesis draws: the list of what is supported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

POPULATION_SIZE = 6


class Draw:
    """Random sizes and options, drawn by hypothesis, and inputs with one row per member."""

    def __init__(self, data: st.DataObject) -> None:
        self._draw = data.draw
        self.members = torch.tensor(
            self._draw(st.lists(st.integers(0, POPULATION_SIZE - 1), min_size=1, max_size=4))
        )
        self.generator = torch.Generator().manual_seed(self._draw(st.integers(0, 10_000)))

    def size(self, least: int = 1, most: int = 4) -> int:
        return self._draw(st.integers(least, most))

    def sizes(self, most: int) -> list[int]:
        """Any number of further dimensions, up to `most` of them."""
        return self._draw(st.lists(st.integers(1, 3), max_size=most))

    def flag(self) -> bool:
        return self._draw(st.booleans())

    def among(self, *options: Any) -> Any:
        return self._draw(st.sampled_from(options))

    def tensor(self, *size: int) -> Tensor:
        """An input of this shape for every row."""
        return self.constant(len(self.members), *size)

    def constant(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def indices(self, high: int, *size: int) -> Tensor:
        """Indices below `high`, of this shape for every row."""
        return torch.randint(high, (len(self.members), *size), generator=self.generator)


Case = tuple[nn.Module, tuple[Tensor, ...]]
"""A module, and its inputs for all rows."""


@dataclass(frozen=True)
class Operation:
    name: str
    case: Callable[[Draw], Case]


OPERATIONS: list[Operation] = []


def operation(name: str, *variants: Any) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Adds an operation to the list, once per variant (an argument, and part of the name) if any."""

    def register(case: Callable[..., Case]) -> Callable[..., Case]:
        for variant in variants:
            label = getattr(variant, "__name__", str(variant))
            OPERATIONS.append(Operation(name.format(label), lambda d, variant=variant: case(d, variant)))
        if not variants:
            OPERATIONS.append(Operation(name, case))
        return case

    return register


class Function(nn.Module):
    """Any function of inputs and of named parameters, as a module."""

    def __init__(self, function: Callable[..., Any], **sizes: Sequence[int]) -> None:
        super().__init__()
        self.function = function
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(tuple(size))))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, **dict(self._parameters))


class Applied(nn.Module):
    """A module with its own way of calling it, possibly with constants that members share."""

    def __init__(self, module: nn.Module, call: Callable[..., Any], **constants: Tensor | None) -> None:
        super().__init__()
        self.module, self.call = module, call
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.module, *inputs, **dict(self._buffers))


# Linear maps


@operation("nn.Linear, with or without bias, any batch dimensions")
def linear(d: Draw) -> Case:
    inputs = d.size()
    return nn.Linear(inputs, d.size(), bias=d.flag()), (d.tensor(*d.sizes(2), inputs),)


@operation("F.linear, weight or bias constant")
def linear_with_constant(d: Draw) -> Case:
    inputs, outputs = d.size(), d.size()
    x = d.tensor(*d.sizes(2), inputs)
    if d.flag():
        weight = d.constant(outputs, inputs)
        return Function(lambda x, b: F.linear(x, weight, bias=b), b=[outputs]), (x,)
    bias = d.constant(outputs)
    return Function(lambda x, w: F.linear(input=x, weight=w, bias=bias), w=[outputs, inputs]), (x,)


@operation("F.linear of a parameter, by a constant or a perturbed weight")
def linear_of_a_parameter(d: Draw) -> Case:
    inputs, outputs = d.size(), d.size()
    if d.flag():
        weight = d.constant(outputs, inputs)
        return Function(lambda x, start: x + F.linear(start, weight), start=[inputs]), (d.tensor(outputs),)
    function = Function(lambda x, start, w: x + F.linear(start, w), start=[2, inputs], w=[outputs, inputs])
    return function, (d.tensor(2, outputs),)


@operation("x {} weight", "@", "matmul", "mm")
def parameter_on_the_right(d: Draw, how: str) -> Case:
    inputs, outputs = d.size(), d.size()
    function = {
        "@": lambda x, w: x @ w,
        "matmul": lambda x, w: torch.matmul(x, other=w),
        "mm": lambda x, w: x.mm(w),
    }[how]
    batch = [d.size()] if how == "mm" else d.sizes(2)
    return Function(function, w=[inputs, outputs]), (d.tensor(*batch, inputs),)


@operation("weight {} x", "@", "matmul", "mm", "mv")
def parameter_on_the_left(d: Draw, how: str) -> Case:
    inputs, outputs = d.size(), d.size()
    function = {
        "@": lambda x, w: w @ x,
        "matmul": lambda x, w: torch.matmul(w, x),
        "mm": lambda x, w: torch.mm(w, x),
        "mv": lambda x, w: w.mv(x),
    }[how]
    shape = {"mm": [inputs, d.size()], "mv": [inputs]}.get(how)
    shape = shape or d.among([inputs], [inputs, d.size()], [d.size(), inputs, d.size()])
    return Function(function, w=[outputs, inputs]), (d.tensor(*shape),)


TRANSPOSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    ".T": lambda w: w.T,
    ".mT": lambda w: w.mT,
    ".t()": lambda w: w.t(),
    ".transpose(0, 1)": lambda w: w.transpose(0, 1),
    "torch.transpose(-1, -2)": lambda w: torch.transpose(w, -1, -2),
    ".swapaxes(1, 0)": lambda w: w.swapaxes(1, 0),
}


@operation("weight{} on either side of @", *TRANSPOSITIONS)
def transposed_parameter(d: Draw, how: str) -> Case:
    transpose, inputs, outputs = TRANSPOSITIONS[how], d.size(), d.size()
    if d.flag():
        return Function(lambda x, w: x @ transpose(w), w=[outputs, inputs]), (d.tensor(*d.sizes(2), inputs),)
    return Function(lambda x, w: transpose(w) @ x, w=[inputs, outputs]), (d.tensor(inputs, d.size()),)


@operation("vector parameter @ x and x @ vector parameter")
def vector_products(d: Draw) -> Case:
    size = d.size()
    if d.flag():
        return Function(lambda x, v: x @ v, v=[size]), (d.tensor(*d.sizes(2), size),)
    return Function(lambda x, v: v @ x, v=[size]), (d.tensor(size, d.size()),)


@operation("one parameter @ another")
def product_of_parameters(d: Draw) -> Case:
    sizes = [d.size() for _ in range(3)]
    return Function(lambda x, a, b: x + a @ b, a=sizes[:2], b=sizes[1:]), (d.tensor(sizes[0], sizes[2]),)


@operation("torch.addmm and Tensor.addmm, parameters anywhere")
def addmm(d: Draw) -> Case:
    rows, inner, columns = d.size(), d.size(), d.size()
    x = d.tensor(rows, inner)
    if d.flag():
        return Function(
            lambda x, b, w: torch.addmm(b, x, w, beta=0.5, alpha=2), b=[columns], w=[inner, columns]
        ), (x,)
    start = d.constant(inner, columns)
    return Function(lambda x, w: start.addmm(w, x), w=[inner, rows]), (d.tensor(rows, columns),)


@operation("nn.Bilinear, with or without bias")
def bilinear(d: Draw) -> Case:
    first, second, batch = d.size(), d.size(), d.sizes(2)
    module = nn.Bilinear(first, second, d.size(), bias=d.flag())
    return module, (d.tensor(*batch, first), d.tensor(*batch, second))


# Convolutions


@operation(
    "nn.{}: stride, padding (numbers, valid, same, circular, ...), dilation, groups, batched or not",
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)
def convolution(d: Draw, kind: type[nn.Module]) -> Case:
    dims = int(kind.__name__[4])
    groups = d.among(1, 1, 2, 3)
    inputs, outputs = groups * d.size(1, 2), groups * d.size(1, 2)
    dilation = tuple(d.size(1, 2) for _ in range(dims))
    padding = d.among("same", "valid", 1, tuple(range(dims)))
    stride = 1 if padding == "same" else tuple(d.size(1, 2) for _ in range(dims))
    mode = "zeros" if padding == "valid" else d.among("zeros", "circular", "reflect", "replicate")
    kernel = tuple(d.size(1, 3) for _ in range(dims))
    module = kind(
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=d.flag(),
        padding_mode=mode,
    )
    return module, (d.tensor(*d.among([], [2]), inputs, *(5 + dim for dim in range(dims))),)


@operation("nn.{}, depthwise with a channel multiplier", nn.Conv1d, nn.Conv2d, nn.Conv3d)
def depthwise_convolution(d: Draw, kind: type[nn.Module]) -> Case:
    dims, channels = int(kind.__name__[4]), d.size(2, 3)
    module = kind(channels, channels * d.size(1, 2), 2, groups=channels, padding=1)
    return module, (d.tensor(*d.among([], [2]), channels, *(4,) * dims),)


@operation(
    "nn.{}: stride, padding, output_padding, dilation, groups, batched or not",
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
def transposed_convolution(d: Draw, kind: type[nn.Module]) -> Case:
    dims = int(kind.__name__[-2])
    groups = d.among(1, 1, 2, 3)
    inputs, outputs = groups * d.size(1, 2), groups * d.size(1, 2)
    stride, dilation = d.size(1, 2), d.size(1, 2)
    module = kind(
        inputs,
        outputs,
        tuple(d.size(1, 3) for _ in range(dims)),
        stride=stride,
        padding=d.size(0, 1),
        output_padding=d.size(0, max(stride, dilation) - 1),
        dilation=dilation,
        groups=groups,
        bias=d.flag(),
    )
    return module, (d.tensor(*d.among([], [2]), inputs, *(3 + dim for dim in range(dims))),)


@operation("F.conv2d with a constant weight and a perturbed bias")
def convolution_with_constant_weight(d: Draw) -> Case:
    weight = d.constant(2, 3, 2, 2)
    return Function(lambda x, b: F.conv2d(x, weight, b), b=[2]), (d.tensor(*d.among([], [2]), 3, 4, 3),)


# Recurrent cells and layers


def rnn_relu_cell(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.RNNCell(*args, nonlinearity="relu", **kwargs)


def rnn_relu(*args: Any, **kwargs: Any) -> nn.Module:
    return nn.RNN(*args, nonlinearity="relu", **kwargs)


rnn_relu_cell.__name__, rnn_relu.__name__ = "RNNCell (relu)", "RNN (relu)"


@operation(
    "nn.{}, with or without bias, batched or not, state given or not",
    nn.RNNCell,
    rnn_relu_cell,
    nn.GRUCell,
    nn.LSTMCell,
)
def recurrent_cell(d: Draw, kind: Callable[..., nn.Module]) -> Case:
    inputs, hidden, batch = d.size(), d.size(), d.among([], [2])
    module = kind(inputs, hidden, bias=d.flag())
    x, states = d.tensor(*batch, inputs), [d.tensor(*batch, hidden) for _ in range(2)]
    if not d.flag():
        return module, (x,)
    if kind is nn.LSTMCell:
        return Applied(module, lambda cell, x, h, c: cell(x, (h, c))), (x, *states)
    return module, (x, states[0])


@operation(
    "nn.{}: layers, bidirectional, batch_first, no bias, batched or not, state given or not",
    nn.RNN,
    rnn_relu,
    nn.GRU,
    nn.LSTM,
)
def recurrent_layer(d: Draw, kind: Callable[..., nn.Module]) -> Case:
    inputs, hidden, layers, directions = d.size(), d.size(2, 3), d.size(1, 2), d.size(1, 2)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": directions == 2, "bias": d.flag()}
    batch, options["batch_first"] = d.among([], [2], [3]), d.flag()
    projected = d.among(0, 1) if kind is nn.LSTM else 0
    if kind is nn.LSTM:
        options["proj_size"] = projected
    module, time = kind(inputs, hidden, **options), d.size(1, 3)
    x = d.tensor(*(reversed([time, *batch]) if options["batch_first"] else [time, *batch]), inputs)
    if not d.flag():
        return module, (x,)
    h = d.tensor(layers * directions, *batch, projected or hidden)
    if kind is not nn.LSTM:
        return module, (x, h)
    c = d.tensor(layers * directions, *batch, hidden)
    return Applied(module, lambda layer, x, h, c: layer(x, (h, c))), (x, h, c)


# Tables


@operation("nn.Embedding, with or without padding_idx")
def embedding(d: Draw) -> Case:
    entries = d.size(2, 5)
    return nn.Embedding(entries, d.size(), padding_idx=d.among(None, 0)), (d.indices(entries, *d.sizes(2)),)


@operation("table[indices]")
def indexed_table(d: Draw) -> Case:
    entries = d.size(2, 5)
    return Function(lambda i, table: table[i], table=[entries, d.size()]), (d.indices(entries, *d.sizes(2)),)


# Normalization


@operation("nn.LayerNorm over one or several dimensions, affine, without bias, or neither")
def layer_norm(d: Draw) -> Case:
    shape = [d.size(2, 4), *d.sizes(1)]
    affine = d.flag()
    module = nn.LayerNorm(shape, elementwise_affine=affine, bias=d.flag())
    return nn.Sequential(module, nn.Linear(shape[-1], 2)), (d.tensor(*d.sizes(2), *shape),)


@operation("nn.RMSNorm over one or several dimensions, affine or not")
def rms_norm(d: Draw) -> Case:
    shape = [d.size(2, 4), *d.sizes(1)]
    module = nn.RMSNorm(shape, eps=d.among(None, 1e-3), elementwise_affine=d.flag())
    return nn.Sequential(module, nn.Linear(shape[-1], 2)), (d.tensor(*d.sizes(2), *shape),)


@operation("nn.GroupNorm")
def group_norm(d: Draw) -> Case:
    groups = d.size(1, 3)
    channels = groups * d.size(1, 2)
    return nn.GroupNorm(groups, channels), (d.tensor(d.size(), channels, *d.among([3], [2, 3], [2, 2, 2])),)


@operation("nn.InstanceNorm{}d, affine, with or without running statistics (eval)", 1, 2, 3)
def instance_norm(d: Draw, dims: int) -> Case:
    channels = d.size()
    module = getattr(nn, f"InstanceNorm{dims}d")(channels, affine=True, track_running_stats=d.flag())
    return module.eval(), (d.tensor(*d.among([], [2]), channels, *(3,) * dims),)


@operation("nn.BatchNorm{}d in eval mode", 1, 2, 3)
def batch_norm(d: Draw, dims: int) -> Case:
    channels = d.size()
    module = getattr(nn, f"BatchNorm{dims}d")(channels).eval()
    positions = d.among([], [3]) if dims == 1 else [2] * dims
    return module, (d.tensor(d.size(), channels, *positions),)


@operation("nn.PReLU, one slope or one a channel")
def prelu(d: Draw) -> Case:
    channels = d.size()
    module = nn.PReLU(d.among(1, channels))
    return module, (d.tensor(d.size(), channels, *d.sizes(2)),)


# Attention


@operation("F.scaled_dot_product_attention with a learned query")
def learned_query(d: Draw) -> Case:
    length, size = d.size(), d.size()
    module = Function(lambda x, q: F.scaled_dot_product_attention(q, x, x), q=[d.size(), size])
    return module, (d.tensor(length, size),)


def attention_options(d: Draw) -> tuple[dict[str, Any], int, int, int]:
    """Returns options of nn.MultiheadAttention, and the widths of its queries, keys and values."""
    heads = d.size(1, 2)
    width = heads * d.size(1, 2)
    key, value = d.among((width, width), (3, 5))
    options = {
        "embed_dim": width,
        "num_heads": heads,
        "kdim": key,
        "vdim": value,
        "bias": d.flag(),
        "add_bias_kv": d.flag(),
        "add_zero_attn": d.flag(),
        "batch_first": d.flag(),
    }
    return options, width, key, value


@operation(
    "nn.MultiheadAttention: kdim, vdim, bias, bias_kv, zero_attn, batch_first, batched or not, "
    "float, bool, 3-d and key padding masks, weights averaged or not"
)
def multihead_attention(d: Draw) -> Case:
    options, *widths = attention_options(d)
    batch, length, source = d.among(0, 1, 2), d.size(1, 3), d.size(1, 3)

    def sequence(length: int, width: int) -> Tensor:
        if not batch:
            return d.tensor(length, width)
        return d.tensor(batch, length, width) if options["batch_first"] else d.tensor(length, batch, width)

    mask = padding = None
    as_bool = d.flag()
    if d.flag():
        copies = [max(batch, 1) * options["num_heads"]] if d.flag() else []
        mask = d.constant(*copies, length, source)
        mask = (mask > 0) & (torch.arange(source) > 0) if as_bool else mask  # the first key stays visible
    if d.flag():
        padding = d.constant(*([batch] if batch else []), source)
        padding = (padding > 0) & (torch.arange(source) > 0) if as_bool else padding
    average, weights = d.flag(), d.flag()

    def call(module: nn.Module, *inputs: Tensor, mask: Tensor, padding: Tensor) -> Any:
        outputs, attention = module(
            *inputs,
            attn_mask=mask,
            key_padding_mask=padding,
            need_weights=weights,
            average_attn_weights=average,
        )
        return (outputs, attention) if weights else outputs

    inputs = [sequence(n, width) for n, width in zip((length, source, source), widths, strict=True)]
    return Applied(nn.MultiheadAttention(**options), call, mask=mask, padding=padding), tuple(inputs)


@operation("nn.MultiheadAttention, causal, in eval mode")
def causal_attention(d: Draw) -> Case:
    length = d.size(1, 3)
    module = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)

    def call(module: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return module(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]

    return Applied(module, call, mask=mask), (d.tensor(d.size(1, 2), length, 4),)


@operation(
    "nn.{}, before or after the norm, relu or gelu, batch_first or not",
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
def transformer_layer(d: Draw, kind: type[nn.Module]) -> Case:
    module = kind(
        4,
        2,
        dim_feedforward=3,
        dropout=0.0,
        activation=d.among("relu", "gelu"),
        batch_first=d.flag(),
        norm_first=d.flag(),
        bias=d.flag(),
    ).train(d.flag())
    length, batch = d.size(1, 3), d.among([], [2])
    x = d.tensor(*(reversed([length, *batch]) if module.self_attn.batch_first else [length, *batch]), 4)
    return module, (x,) if kind is nn.TransformerEncoderLayer else (x, d.tensor(*x.shape[1:]))


# Parameters on their own


ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x * p": lambda x, p: x * p,
    "p * x + p": lambda x, p: p * x + p,
    "x - p, p - x": lambda x, p: (x - p) * (p - x),
    "1 - p, -p": lambda x, p: (1.0 - p) * x * (-p),
    "x / p, 2 / p": lambda x, p: x / p + 2.0 / p,
    "p ** 2, 2 ** p, x ** p": lambda x, p: p**2 + 2.0**p + x.abs() ** p,
    "exp, log, sqrt, abs": lambda x, p: x + p.exp() + torch.log(p.abs()) + p.abs().sqrt(),
    "tanh, sigmoid, relu, softplus, gelu": lambda x, p: (
        x * torch.tanh(p) * F.softplus(p) + p.sigmoid() + F.relu(p) + F.gelu(p)
    ),
    "maximum, minimum, clamp": lambda x, p: (
        torch.maximum(x, p) * p.clamp(min=-0.3, max=0.6) + torch.min(x, x).minimum(p)
    ),
    "where, comparison": lambda x, p: torch.where(x > p, x, p),
    "lerp, addcmul, addcdiv": lambda x, p: (
        torch.lerp(x, p, 0.3) + torch.addcmul(x, p, p, value=0.5) + torch.addcdiv(p, x, x)
    ),
    "add with alpha, sub": lambda x, p: torch.add(x, p, alpha=3.0) + p.sub(x),
}


@operation("{}, for a parameter that is a scalar, a vector, a matrix or a cube", *ELEMENTWISE)
def elementwise(d: Draw, name: str) -> Case:
    shape = [d.size() for _ in range(d.size(0, 3))]
    return Function(ELEMENTWISE[name], p=shape), (d.tensor(*d.sizes(1), *shape),)


@operation("scalar parameter * a single number")
def scalar_times_number(d: Draw) -> Case:
    return Function(lambda x, scale: x * scale.exp(), scale=[]), (d.tensor(),)


@operation("x + positions, a matrix of position embeddings, whole or sliced to the length")
def position_embedding(d: Draw) -> Case:
    length, size = d.size(), d.size()
    module = Function(
        lambda x, positions: x + positions[: x.shape[-2]], positions=[length + d.size(0, 2), size]
    )
    return module, (d.tensor(*d.sizes(1), length, size),)


VIEWS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "p[1:3], p[:, :2], p[-2:, 1:], p[...]": lambda x, p: (
        x @ p[1:3].mT,
        x[:2] * p[:, :2],
        p[-2:, 1:] * 2,
        p[...],
    ),
    "p[0], p[:, 1], p[1, 2], p[::2], p[None], p[-1]": lambda x, p: (
        p[0],
        p[:, 1],
        p[1, 2],
        p[::2],
        p[None],
        p[-1],
    ),
    "narrow": lambda x, p: x[..., :2] @ p.narrow(-1, 1, 2).mT,
    "chunk": lambda x, p: (
        [x @ piece.mT for piece in p.chunk(2)] + [2 * each for each in torch.chunk(p, 2, dim=1)]
    ),
    "split": lambda x, p: (
        [x @ piece.mT for piece in p.split([1, 3])] + [2 * each for each in torch.split(p, 2, -1)]
    ),
    "unbind": lambda x, p: [x * row for row in p.unbind()],
    "view, reshape, flatten": lambda x, p: (
        p.view(3, 4) @ torch.ones(4, dtype=p.dtype),
        p.reshape(-1),
        p.flatten(),
    ),
    "unsqueeze, expand, repeat": lambda x, p: (p.unsqueeze(0).expand(2, -1, -1), p.repeat(2, 1)),
    "permute, movedim, flip, roll": lambda x, p: (p.permute(1, 0), p.movedim(0, 1), p.flip(0), p.roll(1, 0)),
    "cat, stack": lambda x, p: (torch.cat([x.unsqueeze(0), p]), torch.stack([x, p[0]])),
    "cls token: expand and cat": lambda x, p: torch.cat([p[:1].expand(1, -1), x.unsqueeze(0)]),
    "contiguous, clone, detach, data, to(dtype)": lambda x, p: (
        x @ p.contiguous().clone().detach().data.to(x.dtype).mT
    ),
    "x.view_as(p), x.to(p)": lambda x, p: x.to(p) * 1.0 + p[0].view_as(x),
}


@operation("{} of a matrix p", *VIEWS)
def views(d: Draw, name: str) -> Case:
    return Function(VIEWS[name], p=[4, 3]), (d.tensor(3),)


@operation("a parameter, or a view of one, that is an output itself")
def returned(d: Draw) -> Case:
    module = Function(
        lambda x, v, w: (x, v, {"whole": w, "part": w[:, :1], "transposed": w.T}), v=[2], w=[3, 2]
    )
    return module, (d.tensor(2),)


# Whole modules


class Tied(nn.Module):
    """A language model whose output weight is its embedding."""

    def __init__(self, entries: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, size)
        self.head = nn.Linear(size, entries)
        self.head.weight = self.embedding.weight

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(indices)))


@operation("tied weights: an embedding that is also the output layer's weight")
def tied_weights(d: Draw) -> Case:
    entries = d.size(2, 5)
    return Tied(entries, d.size()), (d.indices(entries, *d.sizes(1)),)


@operation("frozen parameters and buffers beside perturbed ones")
def frozen(d: Draw) -> Case:
    inputs, hidden = d.size(), d.size()
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, 2)
    first.weight.requires_grad_(False)
    second.bias.requires_grad_(False)
    network = nn.Sequential(first, nn.Tanh(), second)
    return Applied(network, lambda m, x, mean: m(x - mean), mean=d.constant(inputs)), (d.tensor(inputs),)


class Actor(nn.Module):
    """Maps a dictionary and a tensor to a dictionary; not everything in it is perturbed or a float."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Conv2d(1, 2, 2), nn.Linear(3, 4)
        self.log_std = nn.Parameter(torch.empty(2))

    def forward(self, inputs: dict[str, Tensor], time: Tensor) -> dict[str, Any]:
        features = torch.cat([self.image(inputs["image"]).flatten(-3), self.vector(inputs["vector"])], dim=-1)
        actions = torch.tanh(features)[..., :2] * time
        return {"action": (actions, self.log_std.exp()), "time": time + 1, "best": features.argmax(dim=-1)}


@operation("several inputs and outputs, nested")
def nested(d: Draw) -> Case:
    return Actor(), ({"image": d.tensor(1, 3, 3), "vector": d.tensor(3)}, d.tensor())  # type: ignore[return-value]


def filled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Fills everything with random numbers, in float64, so that no gain is 1 and no offset 0."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
        for name, buffer in module.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2.0, generator=generator)
    return module
