"""Wraps a module so that its weights are random: which of its parameters, and how."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from es_flipout.stochastic.batch_dims import check_layer
from es_flipout.stochastic.distributions import WeightDistribution
from es_flipout.stochastic.estimators import Estimator
from es_flipout.stochastic.perturbed_module import PerturbedModule


def perturbed(
    module: nn.Module,
    distribution: WeightDistribution,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    estimator: Estimator = "flipout",
    num_bases: int = 1,
    in_dims: Any = 0,
    out_dims: Any = 0,
) -> PerturbedModule:
    """Makes the weights of a module random: each example of a mini-batch has its own.

    Unless the estimator is "shared", the module runs on one example at a time, a batch of one. F.batch_norm
    sees the whole mini-batch; anything else that the module computes across the batch dimension does not.

    Parameters that require no gradient are left alone. One with several names is perturbed if one of them is
    included and none excluded, and has the same noise wherever it is used. A reference outside of a module's
    parameters, such as a list of tensors, keeps its plain value.

    Args:
        module: any module, which is not copied; its operations on perturbed parameters must have rules,
            unless the estimator is "independent" (which runs most others, too) or "shared".
        distribution: of the weights.
        include: patterns of parameter names (`fnmatch`), of which one must match.
        exclude: patterns of parameter names that are left alone.
        estimator: how examples get their weights: "flipout", pseudo-independent for the price of a second
            product; "shared", one draw for a batch; "independent", written out; "local", by drawing the
            outputs of fully connected layers.
        num_bases: noise tensors per weight of estimator "flipout", each for N / K consecutive examples. More
            of them lower the variance of large mini-batches, above all of convolutions, but need memory.
        in_dims: the batch dimension of each argument, as torch.vmap takes it: an int for all tensors, or a
            tuple nested as the positional arguments are; None for what all examples share.
        out_dims: the batch dimension of each output, an int for all or nested as the outputs are; None for an
            output without one, which is returned for each example: [N, ...].

    Raises:
        TypeError: if the module cannot be perturbed.
        ValueError: if no parameter matches, the estimator is not exact for the distribution, or the module
            is a layer of torch's that has its batch in another dimension.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {module!r:.80}")
    if any(isinstance(part, PerturbedModule) for part in module.modules()):
        raise TypeError("the module, or a part of it, is perturbed already: one call perturbs all")
    if any(isinstance(m, torch.jit.ScriptModule) or hasattr(m, "_orig_mod") for m in module.modules()):
        raise TypeError("a compiled module hides its operations: pass the module that was compiled")
    if not isinstance(distribution, WeightDistribution):
        raise TypeError(
            f"expected a WeightDistribution such as MultiplicativeGaussian(1.0), got {distribution!r:.80}"
        )
    if estimator != "shared":
        check_layer(module, in_dims, out_dims)
    names = _matching(module, _patterns(include), _patterns(exclude))
    if not names:
        known = ", ".join(name for name, value in module.named_parameters() if value.requires_grad)
        raise ValueError(
            f"no parameter to perturb: include={include!r}, exclude={exclude!r}, trainable parameters: "
            f"{known or 'none'}"
        )
    return PerturbedModule(module, distribution, names, estimator, num_bases, in_dims, out_dims)


def _matching(module: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Returns the first name of each trainable parameter of which a name is included and none excluded."""
    names_of: dict[int, list[str]] = {}
    for name, value in module.named_parameters(remove_duplicate=False):
        if value.requires_grad:
            names_of.setdefault(id(value), []).append(name)

    def matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)

    return [
        names[0] for names in names_of.values() if matches(names, include) and not matches(names, exclude)
    ]


def _patterns(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns
