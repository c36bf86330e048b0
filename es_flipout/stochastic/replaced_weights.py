"""Calls of a module with other weights, which leave it exactly as it was.

nn.RNNBase lays its weights side by side in memory for cuDNN, again whenever one is replaced. That moves
the module's own parameters, whose old memory a CUDA graph may hold. Here nothing is moved. And
torch.func.functional_call leaves its weights in a part that the module contains twice. Here nothing is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from es_flipout.perturbations.torch_modes import Instead


def call_with(
    module: nn.Module, weights: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Returns module(*args, **kwargs) with other weights, by name, in the place of some parameters."""
    replaced = {id(attrgetter(name)(module)) for name in weights}
    own = [
        (part._parameters, name, value)
        for part in module.modules()
        for name, value in part._parameters.items()
        if id(value) in replaced
    ]
    layers = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    before = [(layer._flat_weights, layer._flat_weight_refs) for layer in layers]
    try:
        if not layers:
            return functional_call(module, dict(weights), args, kwargs)
        with Instead(torch._cudnn_rnn_flatten_weight, _flatten_nothing), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
            return functional_call(module, dict(weights), args, kwargs)
    finally:
        for parameters, name, value in own:
            parameters[name] = value
        for layer, (flat, refs) in zip(layers, before, strict=True):
            layer._flat_weights, layer._flat_weight_refs = flat, refs


def _flatten_nothing(*_: Any) -> None:
    """Leaves the weights of a recurrent layer where they are in memory."""
