"""Optimizers by name: those of torch.optim, ClipUp, or a user-defined class.

ClipUp (Toklu, Liskowski and Srivastava, 2020, arXiv 2008.02387) uses only the direction of an evolutionary
gradient g, and bounds the speed of the parameters:

    v <- m v + lr g / |g|        v <- v min(1, max_speed / |v|)        theta <- theta + v
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.choices import LEARNING_RATE
from es_flipout.dotted_path import import_class, is_dotted
from es_flipout.error_text import error_text

FLOAT16_EPS: Final = 1e-2
"""Default `eps` of Adam and its relatives for a policy with float16 parameters.

Torch's 1e-8 is zero in float16, and so is the second moment (1 - 0.999) g² of a gradient |g| below 0.005:
steps would be 0 / 0, or huge.
"""


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
    return optimizer not in _UNUSABLE and not _needs_closure(optimizer)  # type: ignore[arg-type]


@functools.cache
def _needs_closure(optimizer: type) -> bool:
    arguments = list(inspect.signature(optimizer.step).parameters.values())[1:]  # type: ignore[attr-defined]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(each.default is each.empty and each.kind in positional for each in arguments)


def _named_classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Returns the optimizers that can be used by their name alone."""
    named = {
        name: value
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and _is_usable(value)
    }
    return named | {"ClipUp": ClipUp}


def make_optimizer(
    name: str, policy: nn.Module, *, lr: float, kwargs: Mapping[str, Any] = {}, frozen: bool = False
) -> torch.optim.Optimizer:
    """Builds an optimizer over the parameters of a policy that require a gradient.

    Args:
        name: a class of torch.optim, ClipUp, or MODULE:CLASS.
        policy: the policy.
        lr: learning rate.
        kwargs: further keyword arguments of the class.
        frozen: whether it also has the other parameters, which may be unfrozen later.

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
    parameters = [parameter for parameter in policy.parameters() if frozen or parameter.requires_grad]
    eps = inspect.signature(optimizer).parameters.get("eps")
    vanishes = eps is not None and isinstance(eps.default, float) and not torch.tensor(eps.default).half()
    if vanishes and any(parameter.dtype == torch.float16 for parameter in parameters):
        kwargs = {"eps": FLOAT16_EPS, **kwargs}
    build: Callable[..., torch.optim.Optimizer] = optimizer
    try:
        return build(parameters, lr=lr, **kwargs)
    except Exception as error:  # a user's constructor may raise anything
        raise ValueError(f"optimizer {name}: {error_text(error)}") from error


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Checks that an optimizer minimizes over all of the parameters, given by name, without a closure.

    Raises:
        TypeError: if it is not an optimizer.
        ValueError: if it does not.
    """
    if isinstance(optimizer, type) or not hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"the optimizer must be a torch.optim.Optimizer over policy.parameters(), got {optimizer!r:.80}"
        )
    if isinstance(optimizer, torch.optim.SparseAdam) or _needs_closure(type(optimizer)):  # type: ignore[arg-type]
        raise ValueError(
            f"{type(optimizer).__name__} needs a closure or sparse gradients: use another optimizer"
        )
    groups = optimizer.param_groups
    if any(group.get("maximize") for group in groups):
        raise ValueError("the optimizer must not maximize: the strategy already turns ascent into descent")
    known = {id(parameter) for group in groups for parameter in group["params"]}
    missing = [name for name, parameter in parameters.items() if id(parameter) not in known]
    if missing:
        raise ValueError(
            f"the optimizer does not have the parameter {missing[0]!r}, which requires a gradient: "
            "build it over policy.parameters(), add the parameter (optimizer.add_param_group), or freeze it "
            "(requires_grad_(False))"
        )


def follow_policy(optimizer: torch.optim.Optimizer, policy: nn.Module) -> None:
    """Gives an optimizer of one group the parameters that a policy has now; those it had keep their state."""
    (group,) = optimizer.param_groups
    group["params"] = list(policy.parameters())
    for parameter in optimizer.state.keys() - set(group["params"]):
        del optimizer.state[parameter]
    if any(_has_moved(parameter, state) for parameter, state in optimizer.state.items()):
        optimizer.load_state_dict(optimizer.state_dict())  # converts the state to dtype and device


def _has_moved(parameter: Tensor, state: Mapping[str, Any]) -> bool:
    """Returns whether a parameter has another dtype or device than its state in an optimizer."""
    moments = (value for value in state.values() if isinstance(value, Tensor) and value.ndim)
    return any((each.dtype, each.device) != (parameter.dtype, parameter.device) for each in moments)


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads the saved state of an optimizer.

    Raises:
        ValueError: if it does not fit.
    """
    optimizer.load_state_dict(dict(state))
    settings = optimizer.defaults.keys() - {"differentiable"}  # which torch adds to them while it loads
    for group in optimizer.param_groups:
        if missing := sorted(settings - group.keys()):
            raise ValueError(f"the state was saved with a different optimizer: it has no {missing[0]!r}")


def with_frozen(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    """Returns the saved state of an optimizer of one group as that of one that also has frozen parameters.

    Up to version 0.1, the default optimizer had only the parameters that required a gradient.
    """
    if len(optimizer.param_groups) != 1 or len(state["param_groups"]) != 1:
        return state
    saved, parameters = state["param_groups"][0], optimizer.param_groups[0]["params"]
    trained = [index for index, parameter in enumerate(parameters) if parameter.requires_grad]
    if len(saved["params"]) == len(parameters) or len(saved["params"]) != len(trained):
        return state
    index_of = dict(zip(saved["params"], trained, strict=True))
    return {
        "state": {index_of[index]: value for index, value in state["state"].items()},
        "param_groups": [{**saved, "params": list(range(len(parameters)))}],
    }
