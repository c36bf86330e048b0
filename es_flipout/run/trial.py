"""Checks before a run starts: whether the device, the environment and the policy work at all."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from es_flipout.envs import TorchVectorEnv
from es_flipout.parameters import leading_parameter
from es_flipout.rollout.policy_actions import PolicyActions
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


TRIES = 3
"""Reset seeds that are tried: an environment may fail by accident."""


def try_out(es: FlipoutES, env: TorchVectorEnv, env_id: str) -> None:
    """Resets an environment, has a member act once, and steps: what a user's classes get wrong shows there.

    Args:
        es: the strategy over the policy.
        env: an environment of one env.
        env_id: its id.

    Raises:
        ValueError: if the environment fails every time, or the policy does not return an action for it.
    """
    actions = PolicyActions(es.policy, env.single_action_space, env.device)
    for seed in range(TRIES):
        observations, info = env.reset(seed=seed)
        if "failed" not in info:
            action = actions.run(partial(_act, es, observations), 1)
            *_, info = env.step(action)
        if "failed" not in info:
            return
    raise ValueError(f"{env_id}: {info['failures'][0]}")


def _act(es: FlipoutES, observations: Tensor) -> Tensor:
    """Returns the actions of the first member for one observation, [1, ...]."""
    policy = es.policy
    rows = es.ask().select(torch.zeros(1, dtype=torch.int64))
    observations = observations.to(leading_parameter(policy))
    if is_recurrent(policy):
        return RecurrentState(policy, 1).act(rows, observations, slice(None))
    actions: Tensor = rows(observations)
    return actions
