"""The border to a user's policy: which parameters are trained, and whether they can be."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

TRAINABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Dtypes in which parameters can be perturbed and trained."""


def trained_parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name: those that require a gradient."""
    return {name: value for name, value in policy.named_parameters() if value.requires_grad}


def leading_parameter(policy: nn.Module) -> nn.Parameter:
    """Returns the parameter whose device and dtype observations take: the first that is trained.

    The first of all if none is. Frozen ones may be of another dtype: indices, or half precision.
    """
    parameters = list(policy.parameters())
    return next((each for each in parameters if each.requires_grad), parameters[0])


def check_policy(policy: nn.Module) -> None:
    """Checks that a policy can run as a population, and that its parameters can be trained.

    Raises:
        TypeError: if it is no module.
        ValueError: if it is compiled, or its parameters cannot be trained.
    """
    if not isinstance(policy, nn.Module):
        raise TypeError(f"the policy must be a torch.nn.Module, got {policy!r:.80}")
    if any(isinstance(m, torch.jit.ScriptModule) or hasattr(m, "_orig_mod") for m in policy.modules()):
        raise ValueError("a compiled module hides its operations: pass the policy that was compiled")
    parameters = trained_parameters(policy)
    check_trained(parameters)
    if (name := first_not_finite(parameters)) is not None:
        raise ValueError(f"the parameter {name!r} is not finite: initialize it before training")


def check_trained(parameters: Mapping[str, nn.Parameter]) -> None:
    """Checks that parameters, given by name, can be perturbed and trained; their values are not read.

    Raises:
        ValueError: if one of them cannot, or there is none.
    """
    if not parameters:
        raise ValueError("the policy has no parameter that requires a gradient: there is nothing to train")
    first = next(iter(parameters.values())).device
    for name, value in parameters.items():
        is_lazy = isinstance(value, nn.parameter.UninitializedParameter)
        if not is_lazy and value.device == first and _is_ordinary(value):
            continue
        if is_lazy:
            problem = "has no shape yet: run the policy once on an example"
        elif value.is_meta:
            problem = "is on the meta device, without values: use policy.to_empty(device=...) and load them"
        elif value.layout != torch.strided or value.is_quantized or value.is_nested:
            problem = f"is not an ordinary dense tensor ({value.layout}, {value.dtype}): train a dense copy"
        elif value.is_complex():
            problem = (
                f"is complex ({value.dtype}): train torch.view_as_real(...), and view_as_complex in forward"
            )
        elif value.dtype not in TRAINABLE_DTYPES:
            problem = (
                f"has the dtype {value.dtype}: convert it to one of {', '.join(map(str, TRAINABLE_DTYPES))}"
            )
        elif value.device != first:
            problem = f"is on {value.device}, others are on {first}: move the policy to one device"
        else:
            problem = "is expanded, so that its entries share memory: use .clone() of it"
        raise ValueError(f"the parameter {name!r} {problem}, or freeze it (requires_grad_(False))")


def _is_ordinary(value: Tensor) -> bool:
    """Returns whether a tensor is dense, has values of a trainable dtype, and memory for each of them."""
    return (
        value.dtype in TRAINABLE_DTYPES
        and value.layout == torch.strided
        and not (value.is_meta or value.is_nested)
        and all(step or size <= 1 for step, size in zip(value.stride(), value.shape, strict=True))
    )


def changed_parameter(parameters: Mapping[str, nn.Parameter], policy: nn.Module) -> str | None:
    """Returns the name of one that was frozen, unfrozen or replaced since `trained_parameters`, if any."""
    now = trained_parameters(policy)
    names = [*parameters, *(name for name in now if name not in parameters)]
    return next((name for name in names if now.get(name) is not parameters.get(name)), None)


def check_unchanged(parameters: Mapping[str, nn.Parameter], policy: nn.Module) -> None:
    """Checks that the trained parameters of a policy are still those of its population.

    Raises:
        ValueError: if one was frozen, unfrozen or replaced.
    """
    if (name := changed_parameter(parameters, policy)) is not None:
        raise ValueError(
            f"the parameter {name!r} was frozen, unfrozen or replaced after the population was asked for: "
            "call ask again, and evaluate that population"
        )


def first_not_finite(parameters: Mapping[str, Tensor]) -> str | None:
    """Returns the name of the first parameter that holds NaN or infinity, if one does."""
    return next((name for name, value in parameters.items() if not value.isfinite().all()), None)


def padding_entries(policy: nn.Module) -> dict[str, int]:
    """Returns the entry, by name of the trained table, that an embedding's `padding_idx` keeps fixed."""
    tables = [part for part in policy.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)]
    if not tables:
        return {}
    names = {id(value): name for name, value in trained_parameters(policy).items()}
    return {
        names[id(table.weight)]: table.padding_idx
        for table in tables
        if table.padding_idx is not None and id(table.weight) in names
    }
