"""Checks before a run starts: whether the device, the environment and the policy work at all."""

from __future__ import annotations

import torch
from gymnasium.spaces import Discrete, MultiDiscrete
from torch import Tensor

from es_flipout.envs import TorchVectorEnv
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent
from es_flipout.strategy import FlipoutES


def check_device(device: str) -> None:
    """Checks that torch can compute on a device.

    Raises:
        ValueError: if it cannot.
    """
    try:
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} is not available") from error


def first_observation(env: TorchVectorEnv) -> Tensor:
    """Resets an environment; a keyword argument of the right name may hold a value that only this refuses.

    Returns:
        The observation of its first env, [1, ...].

    Raises:
        ValueError: if no env can be reset.
    """
    observations, info = env.reset(seed=0)
    if "failed" in info and info["failed"].all():
        raise ValueError(info["failures"][0])
    return observations[:1]


def try_policy(es: FlipoutES, env: TorchVectorEnv, observations: Tensor) -> None:
    """Has a member act once, to find what a class of the user's gets wrong.

    Args:
        es: the strategy over the policy.
        env: the environment.
        observations: one of its observations, [1, ...].

    Raises:
        ValueError: if the policy raises, or does not return an action of the environment's.
    """
    policy, space = es.policy, env.single_action_space
    try:
        rows = es.ask().select(torch.zeros(1, dtype=torch.int64))
        observations = observations.to(next(policy.parameters()))
        if is_recurrent(policy):
            actions = RecurrentState(policy, 1).act(rows, observations, slice(None))
        else:
            actions = rows(observations)
    except Exception as error:  # whatever a user's code may raise
        name = type(policy).__name__
        raise ValueError(f"policy {name} cannot act: {type(error).__name__}: {error}") from error
    kind = "integers" if isinstance(space, Discrete | MultiDiscrete) else "real numbers"
    shape = (1, *(space.shape or ()))
    fits = isinstance(actions, Tensor) and actions.shape == shape
    if not fits or actions.is_floating_point() != (kind == "real numbers"):
        found = f"{actions.dtype} {list(actions.shape)}" if isinstance(actions, Tensor) else repr(actions)
        raise ValueError(
            f"policy {type(policy).__name__} must return actions for {space}, {kind} {list(shape)} for one "
            f"observation, but returns {found}"
        )
