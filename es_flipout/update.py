"""One step of an optimizer, taken back if it fails, and the figures of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from es_flipout.optimizers import FLOAT16_EPS
from es_flipout.parameters import first_not_finite
from es_flipout.perturbations.module_copy import copy_state


@dataclass(frozen=True)
class Update:
    """Results of a call of `tell`, and what they say about the settings.

    Attributes:
        gradient_norm: Euclidean norm of the gradient estimate, before weight decay.
        update_norm: Euclidean norm of the change of the parameters.
        parameter_norm: Euclidean norm of the parameters after it.
        update_ratio: update norm over the parameters' norm before it. Weights change by about this share per
            generation: near 1, the learning rate is too high for their scale; below 1e-4, training is slow.
        update_cosine: cosine between this update and the previous one, NaN for the first. Near 1, steps agree
            and could be longer; near 0 or below, they are mostly noise: try a larger population or a smaller
            learning rate.
        tied_fraction: share of the members that share their fitness with another member. Near 1, sigma is too
            small to make a difference, or the fitness is too coarse.
        signal_to_noise: see `FlipoutES.tell`; None unless requested.
    """

    gradient_norm: float
    update_norm: float
    parameter_norm: float
    update_ratio: float
    update_cosine: float
    tied_fraction: float
    signal_to_noise: float | None = None


def take_step(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    descent: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
) -> float:
    """Lets an optimizer step, and returns the norm of the parameters after it.

    The hooks of a parameter see its gradient, as in back-propagation. If an error is raised, the parameters
    and the state of the optimizer are as before.

    Args:
        optimizer: moves the parameters.
        parameters: by name.
        descent: their gradients.
        before: copies of their values.

    Raises:
        ValueError: if parameters are not finite after the step.
    """
    state, settings = copy_state(optimizer.state), copy_state(_settings(optimizer))
    try:
        for name, value in parameters.items():
            value.grad = None
            if value._backward_hooks or value._post_accumulate_grad_hooks:
                torch.autograd.backward(value, descent[name])
            else:
                value.grad = descent[name]
        optimizer.step()
        size = norm(parameters)
        if not math.isfinite(size):
            raise ValueError(_not_finite(parameters, before))
    except BaseException:
        for name, value in parameters.items():
            value.copy_(before[name])
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)
        raise
    finally:
        for value in parameters.values():
            value.grad = None
    return size


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns the settings of each group of parameters; some optimizers change them in every step."""
    return [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]


def _not_finite(parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> str:
    """Returns what to say of parameters that are not finite after a step."""
    if (name := first_not_finite(before)) is not None:
        return f"the parameter {name!r} is not finite, and was not before the update either"
    name = first_not_finite(parameters) or next(iter(parameters))
    in_float16 = parameters[name].dtype == torch.float16
    remedy = (
        f"give it an eps of {FLOAT16_EPS:g} or so in float16" if in_float16 else "lower its learning rate"
    )
    return f"the optimizer's step made the parameter {name!r} not finite, and was taken back: {remedy}"


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Returns the inner product of tensors with the same names, computed in float64."""
    products = [(one[name].to(other[name].device).double() * other[name].double()).sum() for name in one]
    return float(torch.stack(products).sum())


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Returns the joint Euclidean norm of tensors."""
    return math.sqrt(dot(tensors, tensors))


def cosine(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Returns the cosine of the angle between tensors; NaN if one is zero, or their shapes differ."""
    if {name: value.shape for name, value in one.items()} != {
        name: value.shape for name, value in other.items()
    }:
        return math.nan
    norms = norm(one) * norm(other)
    return dot(one, other) / norms if norms else math.nan
