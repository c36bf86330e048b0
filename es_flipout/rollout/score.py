"""Scores an unperturbed policy in the official Gymnasium environment: the judge of every run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from es_flipout.envs.gymnasium import GymnasiumVectorEnv, make_env
from es_flipout.envs.native import official_id
from es_flipout.rollout.episodes import EvaluationStoppedError
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent
from es_flipout.run.config import EnvConfig

FrameSink = Callable[[NDArray[np.uint8]], None]
"""Receives rendered frames, uint8 [height, width, 3], in order."""


@dataclass(frozen=True)
class OfficialScore:
    """Returns and lengths (env steps) of the episodes, in order; the return of one that failed is NaN."""

    returns: list[float]
    lengths: list[int]

    @property
    def failed(self) -> int:
        """Episodes that failed: the environment raised, or its process died."""
        return len(self.returns) - len(self._usable)

    @property
    def mean(self) -> float:
        """Mean return of the episodes that did not fail; NaN if all did."""
        return statistics.fmean(self._usable) if self._usable else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of their returns (of the population, 0 for one episode)."""
        return statistics.pstdev(self._usable) if self._usable else math.nan

    @property
    def _usable(self) -> list[float]:
        return [value for value in self.returns if not math.isnan(value)]


class OfficialEvaluator:
    """Some official environments, side by side, so that the policy runs once a step for all of them."""

    def __init__(self, env: EnvConfig, episodes: int, *, render: bool = False, processes: int = 0) -> None:
        """Makes the environments.

        Args:
            env: the environment's id, keyword arguments and wrappers.
            episodes: number of episodes a score.
            render: whether the first episode can be rendered; it is then in this process, like all others.
            processes: how many processes the environments are shared out over; 0 for none but this one.
        """
        make = partial(make_env, official_id(env.id), env.wrappers, **env.kwargs)
        self.env: gym.Env[object, object] = make(render_mode="rgb_array") if render else make()
        self._envs = GymnasiumVectorEnv(
            make,
            episodes,
            dtype=torch.float64,
            processes=0 if render else processes,
            first=self.env,
        )
        self._episodes = episodes

    @torch.no_grad()
    def score(
        self,
        policy: nn.Module,
        *,
        seed: int,
        on_frame: FrameSink | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> OfficialScore:
        """Runs one episode of the policy in every environment.

        Args:
            policy: observations [N, ...] to actions [N, ...]; a recurrent one has a state an episode.
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
            on_frame: if given, gets every frame of the first episode.
            should_stop: asked before every step.

        Raises:
            EvaluationStoppedError: if `should_stop` said so.
            ValueError: if frames are wanted of environments made without `render`.
        """
        if on_frame and self.env.render_mode is None:
            raise ValueError("on_frame needs environments made with render=True")
        like, envs = next(policy.parameters()), self._envs
        actions = torch.from_numpy(np.zeros(envs.action_space.shape, envs.action_space.dtype))
        returns, lengths = [0.0] * self._episodes, [0] * self._episodes
        observed, info = envs.reset(seed=seed)
        broken = info.get("failed", np.zeros(self._episodes, dtype=np.bool_))
        live = np.flatnonzero(~broken).tolist()
        recurrent = RecurrentState(policy, self._episodes) if is_recurrent(policy) else None
        while live:
            if should_stop():
                raise EvaluationStoppedError
            if on_frame and live[0] == 0:
                on_frame(np.asarray(self.env.render(), dtype=np.uint8))
            observations = observed[live].to(like)
            if recurrent is None:
                acted = policy(observations)
            else:
                acted = recurrent.act(policy, observations, torch.tensor(live))
            actions[live] = acted.to(actions)
            observed, rewards, terminated, truncated, info = envs.step(actions)
            broken = broken | info.get("failed", False)
            for i in live:
                if not broken[i]:
                    returns[i] += float(rewards[i])
                    lengths[i] += 1
            live = np.flatnonzero(~(terminated | truncated).numpy()).tolist()
        return OfficialScore([math.nan if broken[i] else value for i, value in enumerate(returns)], lengths)

    def close(self) -> None:
        """Closes the environments."""
        self._envs.close()
