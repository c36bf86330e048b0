"""Optimizers by name: those of torch.optim, ClipUp, or a user-defined class.

ClipUp (Toklu, Liskowski and Srivastava, 2020, arXiv 2008.02387) uses only the direction of an evolutionary
gradient g, and bounds the speed of the parameters:

    v <- m v + lr g / |g|        v <- v min(1, max_speed / |v|)        theta <- theta + v
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.dotted_path import import_class, is_dotted

OPTIMIZER: Final = "Adam"
"""Name of the default optimizer."""
LEARNING_RATE: Final = 0.01
"""Default learning rate."""


class ClipUp(torch.optim.Optimizer):
    """Normalized gradients, heavy-ball momentum, and a clipped velocity.

    Norms are over all parameters of a group together. Like every torch optimizer it descends; FlipoutES
    passes it the negative ascent direction.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = LEARNING_RATE,
        momentum: float = 0.9,
        max_speed: float | None = None,
    ) -> None:
        """Takes the parameters.

        Args:
            params: parameters, or groups of them, as for any torch optimizer.
            lr: length of the contribution of one gradient to the velocity.
            momentum: fraction of the velocity kept per step, in [0, 1).
            max_speed: maximum length of a step. None means twice the current learning rate (the paper's rule
                of thumb), so it follows a schedule; a number is constant.

        Raises:
            ValueError: if a number is out of its range.
        """
        if not (lr > 0 and math.isfinite(lr)):
            raise ValueError(f"lr must be > 0, got {lr}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if max_speed is not None and not (max_speed > 0 and math.isfinite(max_speed)):
            raise ValueError(f"max_speed must be > 0, or null for 2 lr, got {max_speed}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "max_speed": max_speed})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves the parameters; returns the result of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        velocities = [self._velocity(parameter) for parameter in parameters]
        length = _norm([parameter.grad for parameter in parameters])
        for parameter, velocity in zip(parameters, velocities, strict=True):
            velocity.mul_(group["momentum"])
            if length > 0:  # a gradient of zero has no direction: the velocity fades
                velocity.add_(parameter.grad / length, alpha=group["lr"])
        max_speed = 2 * group["lr"] if group["max_speed"] is None else group["max_speed"]
        speed = _norm(velocities)
        for parameter, velocity in zip(parameters, velocities, strict=True):
            if speed > max_speed:
                velocity.mul_(max_speed / speed)
            parameter.sub_(velocity)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity: Tensor = state["velocity"]
        return velocity


def _norm(tensors: Iterable[Tensor | None]) -> float:
    """Returns their joint Euclidean norm, computed in float64 because tiny squares underflow."""
    norms = [
        torch.linalg.vector_norm(each, dtype=torch.float64).cpu() for each in tensors if each is not None
    ]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


_UNUSABLE = (
    torch.optim.Optimizer,  # abstract
    torch.optim.SparseAdam,  # for sparse gradients only
    getattr(torch.optim, "Muon", None),  # for matrices only
)


def _is_usable(optimizer: type[torch.optim.Optimizer]) -> bool:
    """Returns whether an optimizer takes dense gradients and steps without a closure."""
    closure = list(inspect.signature(optimizer.step).parameters.values())[1:]
    optional = all(each.default is not each.empty for each in closure)
    return optimizer not in _UNUSABLE and optional


def _named_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Returns the optimizers that can be used by their name alone."""
    named = {
        name: value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and _is_usable(value)
    }
    return named | {"ClipUp": ClipUp}


def make_optimizer(
    name: str, policy: nn.Module, *, lr: float, kwargs: Mapping[str, Any] = {}
) -> torch.optim.Optimizer:
    """Builds an optimizer over the parameters of a policy that require a gradient.

    Args:
        name: a class of torch.optim, ClipUp, or MODULE:CLASS.
        policy: the policy.
        lr: learning rate.
        kwargs: further keyword arguments of the class.

    Raises:
        ValueError: if there is no such optimizer, or it does not accept the arguments.
    """
    if is_dotted(name):
        optimizer = import_class(name, torch.optim.Optimizer, "optimizer.name")
        if not _is_usable(optimizer):
            raise ValueError(f"optimizer.name {name!r} needs a closure or sparse gradients")
    else:
        classes = _named_classes()
        if name not in classes:
            raise ValueError(
                f"optimizer.name {name!r} is not available; choose one of "
                f"{', '.join(sorted(classes))}, or your own class by MODULE:CLASS"
            )
        optimizer = classes[name]
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    build: Callable[..., torch.optim.Optimizer] = optimizer
    try:
        return build(parameters, lr=lr, **kwargs)
    except Exception as error:  # a user's constructor may raise anything
        raise ValueError(f"optimizer {name}: {error}") from error


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Checks that an optimizer minimizes over all of the parameters, given by name.

    Raises:
        ValueError: if it does not.
    """
    groups = optimizer.param_groups
    if any(group.get("maximize") for group in groups):
        raise ValueError("the optimizer must not maximize: the strategy already turns ascent into descent")
    known = {id(parameter) for group in groups for parameter in group["params"]}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in known]
    if missing:
        raise ValueError(
            f"the optimizer does not have the parameter {missing[0]!r}, which requires a gradient: "
            "build it over policy.parameters(), or freeze the parameter (requires_grad_(False))"
        )
