"""Scores a policy: its mean return over a few episodes, without any noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.make_loop import loop_of_center
from es_flipout.rollout.player import never
from es_flipout.rollout.score_info import parse_all


class Scorer:
    """Plays episodes of the center side by side, one episode in each env of a vector environment."""

    def __init__(self, env: TorchVectorEnv, *, info: Sequence[str] = ()) -> None:
        """Takes over the environment, which `close` closes.

        Args:
            env: with one env for each episode of a score; made with dtype float64 it rounds nothing, for
                example `make_vec("Hopper-v5", 10, engine="gymnasium", dtype=torch.float64)`.
            info: metrics that are recorded in `Episodes.info`: NAME is the value of that entry of `info` in
                the last step of each episode, mean:NAME its mean over the steps, max:NAME its maximum. The
                environment must return these entries; see `make_vec`.

        Raises:
            ValueError: if a metric names no entry, or is there twice.
        """
        parse_all(info)
        self._info = info
        self._env = env
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space

    def score(
        self,
        policy: nn.Module,
        *,
        seed: int,
        should_stop: Callable[[], bool] = never,
        begun: Callable[[Episodes], None] = lambda episodes: None,
    ) -> Episodes:
        """Plays one episode in every env.

        Args:
            policy: observations [N, ...] to actions [N, ...]; a recurrent one has a state per episode.
            seed: reset seed of the first episode; episode i is reset with `seed + i`.
            should_stop: asked before every step.
            begun: called with the table of episodes, which fills up, before the first step.

        Returns:
            The episodes; `mean_return`, `std_return` and `info_means` are of those that did not fail.

        Raises:
            PlayStoppedError: if `should_stop` said so.
            ValueError: if an entry of `info` has several numbers for each env.
        """
        count = self._env.num_envs
        episodes = Episodes(np.zeros(count, np.int64), seed + np.arange(count), info=self._info)
        loop = loop_of_center(self._env, policy)
        loop.add(episodes)
        begun(episodes)
        loop.run(should_stop)
        episodes.spent_steps = loop.spent_steps
        return episodes

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()
