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

from es_flipout.envs.gymnasium import make_env, step_rows
from es_flipout.envs.make import official_id
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
        self._rows = step_rows(make, episodes, self.env, 0 if render else processes)
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
        like, arrays = next(policy.parameters()), self._rows.arrays
        returns, lengths = [0.0] * self._episodes, [0] * self._episodes
        failed = self._rows.reset({row: seed + row for row in range(self._episodes)})
        live = [row for row in range(self._episodes) if row not in failed]
        broken = set(failed)
        recurrent = RecurrentState(policy, self._episodes) if is_recurrent(policy) else None
        while live:
            if should_stop():
                raise EvaluationStoppedError
            if on_frame and live[0] == 0:
                on_frame(np.asarray(self.env.render(), dtype=np.uint8))
            observations = torch.as_tensor(arrays.observations[live]).to(like)
            if recurrent is None:
                actions = policy(observations)
            else:
                actions = recurrent.act(policy, observations, torch.tensor(live))
            arrays.actions[live] = actions.cpu().numpy()
            failed = self._rows.step(live)
            broken |= failed.keys() & set(live)
            for row in set(live) - broken:
                returns[row] += float(arrays.rewards[row])
                lengths[row] += 1
            over = arrays.terminated | arrays.truncated
            live = [row for row in live if not over[row] and row not in broken]
        return OfficialScore(
            [math.nan if row in broken else value for row, value in enumerate(returns)], lengths
        )

    def close(self) -> None:
        """Closes the environments."""
        self.env.close()
        self._rows.close()
