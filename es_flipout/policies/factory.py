"""Makes a policy by name: one of the package, or a user-defined class.

A user-defined class is called as `Class(observation_space, action_space, **policy.kwargs)` and maps
observations [N, ...] to actions [N, ...]. If the environment's observations are a Dict or a Tuple, it gets
that space, and dicts or tuples of tensors [N, ...]; see `FlatBox.unflatten`. Optionally it has:

- `normalizer`, an `ObservationNormalizer`: it receives the moments of every generation's observations;
- `initial_state(batch_size)`, which makes it recurrent, `forward(observations, state) -> (actions, state)`; a
  state is a tensor (or a container of tensors) with the batch first, the same for every new episode;
- `row_wise = True`: declares that forward treats all leading dimensions as independent rows; all members then
  run without vmap.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from es_flipout.dotted_path import import_class, is_dotted
from es_flipout.error_text import error_text
from es_flipout.normalization import ObservationNormalizer
from es_flipout.policies.cnn import MOST_CHANNELS, CNNPolicy, channels_are_last
from es_flipout.policies.flat_box import FlatBox, short_name
from es_flipout.policies.mlp import LinearPolicy, MLPPolicy
from es_flipout.policies.observations import box
from es_flipout.policies.recurrent import GRUPolicy, LSTMPolicy
from es_flipout.policies.stacked import StackedPolicy, stacked_space
from es_flipout.policies.structured import structured

POLICIES: dict[str, type[nn.Module]] = {
    "mlp": MLPPolicy,
    "linear": LinearPolicy,
    "gru": GRUPolicy,
    "lstm": LSTMPolicy,
    "cnn": CNNPolicy,
}
"""The package's policies, by `policy.kind`."""


def make_policy(
    kind: str,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    *,
    settings: Mapping[str, Any] = {},
    kwargs: Mapping[str, Any] = {},
    observation_stack: int = 1,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Builds a policy for an environment's spaces.

    Args:
        kind: a name in `POLICIES`, or MODULE:CLASS.
        observation_space: a single environment's observations.
        action_space: a single environment's actions.
        settings: common settings of the package's policies, such as hidden_sizes; each policy takes those it
            knows, a user-defined class takes none.
        kwargs: further keyword arguments of the class.
        observation_stack: how many of the last observations the policy acts on. If more than one, it is made
            for their `stacked_space`, and put in a `StackedPolicy`.
        generator: source of the initial weights. A user-defined class draws from torch's global CPU
            generator, which temporarily gets this one's seed.

    Raises:
        ValueError: if there is no such policy, or it does not accept the spaces or the arguments.
    """
    if observation_stack > 1:
        single, axis = box(observation_space), _stack_axis(kind, observation_space, kwargs)
        if kind == "cnn" and kwargs.get("channel_order", "auto") == "auto":
            kwargs = {**kwargs, "channel_order": "last" if axis == 2 else "first"}
        policy = make_policy(
            kind,
            stacked_space(single, observation_stack, axis),
            action_space,
            settings=settings,
            kwargs=kwargs,
            generator=generator,
        )
        return StackedPolicy(policy, single, observation_stack, axis=axis).train(policy.training)
    with _global_generator_seeded(generator):
        if kind in POLICIES:
            arguments = {**_own_arguments(kind, settings, kwargs), "generator": generator}
            return POLICIES[kind](observation_space, action_space, **arguments)
        if not is_dotted(kind):
            raise ValueError(
                f"policy.kind {kind!r} does not exist: choose one of {', '.join(POLICIES)}, "
                "or your own class by MODULE:CLASS"
            )
        return _make_user_defined(kind, observation_space, action_space, kwargs)


def _stack_axis(kind: str, space: gym.Space[Any], kwargs: Mapping[str, Any]) -> int:
    """Returns the axis of observations along which they are stacked: of images, that of the channels."""
    shape = box(space).shape
    if len(shape) != 3:
        return 0
    if kind == "cnn":
        return 2 if channels_are_last(shape, kwargs.get("channel_order", "auto")) else 0
    return 2 if shape[2] <= MOST_CHANNELS < shape[0] else 0


def _own_arguments(kind: str, settings: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of one of the package's policies, without settings that it does not know."""
    known = set(inspect.signature(POLICIES[kind]).parameters)
    known -= {"observation_space", "action_space", "generator"}
    for name in kwargs:
        if name in settings:
            raise ValueError(f"policy.kwargs must not hold {name}: set policy.{name}")
        if name not in known:
            further = ", ".join(sorted(known - set(settings))) or "none"
            raise ValueError(f"policy.kwargs: {kind} has no argument {name!r} (allowed: {further})")
    return {name: value for name, value in settings.items() if name in known} | dict(kwargs)


def _make_user_defined(
    kind: str, observation_space: gym.Space[Any], action_space: gym.Space[Any], kwargs: Mapping[str, Any]
) -> nn.Module:
    policy_class = import_class(kind, nn.Module, "policy.kind")
    flat, hint = None, ""
    if isinstance(observation_space, FlatBox) and isinstance(
        observation_space.original, spaces.Dict | spaces.Tuple
    ):
        flat, observation_space = observation_space, observation_space.original
        hint = f" (observations are {short_name(observation_space)}; env.wrappers [FlattenObservation] makes "
        hint += "them vectors)"
    try:
        policy = policy_class(observation_space, action_space, **kwargs)
    except Exception as error:  # a user's constructor may raise anything
        reason = error_text(error)
        raise ValueError(f"policy {kind} cannot be built for these spaces: {reason}{hint}") from error
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        raise ValueError(f"policy {kind} has no parameter to train (none requires a gradient)")
    if not all(isinstance(value, Tensor) for value in policy.state_dict().values()):
        raise ValueError(f"policy {kind}: its state dict must hold only tensors, as checkpoints do")
    _check_normalizer(kind, getattr(policy, "normalizer", None), observation_space)
    policy = policy if flat is None else structured(policy, flat)
    return policy.eval()  # in training mode, dropout would make actions random


def _check_normalizer(kind: str, normalizer: object, space: gym.Space[Any]) -> None:
    if normalizer is None:
        return
    if not isinstance(normalizer, ObservationNormalizer):
        raise ValueError(
            f"policy {kind}: normalizer must be an es_flipout.ObservationNormalizer, "
            f"got {type(normalizer).__name__}"
        )
    if space.shape != normalizer.mean.shape:
        raise ValueError(
            f"policy {kind}: its normalizer has {normalizer.mean.shape[0]} features, but observations have "
            f"shape {space.shape}; only vectors can be normalized"
        )


@contextlib.contextmanager
def _global_generator_seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seeds torch's global CPU generator with the seed of `generator`, and restores its state afterwards."""
    if generator is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        yield
