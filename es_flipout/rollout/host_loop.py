"""The step loop of any environment and policy: members side by side in torch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from es_flipout.envs.contract import TorchVectorEnv
from es_flipout.parameters import leading_parameter
from es_flipout.rollout.episodes import Episodes
from es_flipout.rollout.moments import Ints
from es_flipout.rollout.policy_actions import PolicyActions
from es_flipout.rollout.recurrence import RecurrentState, is_recurrent
from es_flipout.rollout.rows import Rows
from es_flipout.rollout.score_info import InfoRecorder
from es_flipout.rollout.step_loop import StepLoop


class HostLoop(StepLoop):
    """Envs whose policies run in one forward, as `Rows` does it; see `StepLoop`."""

    def __init__(
        self,
        env: TorchVectorEnv,
        policy: nn.Module,
        rows: Rows,
        *,
        idle_share: float = 0.5,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Sets up the loop without starting any episode.

        Args:
            env: whose envs they are.
            policy: whose members play, for its dtype and its initial state.
            rows: runs the members.
            idle_share: the policy is run for envs whose episode has ended, too, until they are this share of
                those that act: that costs less than a new selection of members.
            lock: see `StepLoop`.
        """
        super().__init__(env, lock=lock)
        self._rows = rows
        self._idle_share = idle_share
        self._acting = np.empty(0, dtype=np.int64)  # the envs that the policy runs for, sorted
        self._acting_index: Tensor | slice = torch.from_numpy(self._acting)
        self._actions = PolicyActions(policy, env.single_action_space, env.device)
        self._like = leading_parameter(policy)
        self._recurrent = RecurrentState(policy, env.num_envs) if is_recurrent(policy) else None
        self._info: InfoRecorder | None = None

    @override
    def add(self, episodes: Episodes, rows: Ints | None = None) -> None:
        if episodes.info and self._info is None:
            self._info = InfoRecorder(list(episodes.info), self.env.num_envs)
        super().add(episodes, rows)

    @override
    def _advance(self) -> None:
        observations = self._observations
        if isinstance(self._acting_index, slice):
            actions = self._act(observations)
        else:
            some = self._act(observations[self._acting_index])
            actions = some.new_zeros(self.env.num_envs, *some.shape[1:])
            actions[self._acting_index] = some
        if self._noise is not None:
            actions = self._noise.added(actions, self._row >= 0, self._lengths)
        if self._moments is not None:
            first, sums, squares = self._moments
            deviations = observations - first
            sums += deviations
            squares.addcmul_(deviations, deviations)
        self._observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._returns += rewards
        self._lengths += 1
        self.spent_steps += self.env.num_envs
        ended = (terminated | truncated).cpu().numpy()
        if self._info is not None:
            self._info.add(info)
        self._retire_at_limit(ended)
        self._continue(ended, info)

    def _act(self, observations: Tensor) -> Tensor:
        """Returns the actions in the envs that act, of the action space's dtype."""
        observations = observations.to(self._like)
        if self._recurrent is None:
            act = partial(self._rows, observations)
        else:
            act = partial(self._recurrent.act, self._rows, observations, self._acting_index)
        return self._actions.run(act, len(observations))

    @override
    def _conclude(self, envs: Ints, info: dict[str, Any]) -> None:
        rows = self._row[envs]
        super()._conclude(envs, info)
        if self._info is None:
            return
        for env, row in zip(envs.tolist(), rows.tolist(), strict=True):
            table = self._table[env]
            if table is not None and row not in table.faults:
                for name, value in self._info.values(env).items():
                    table.info[name][row] = value

    @override
    def _hand_over(self, changed: Ints) -> None:
        live = np.flatnonzero(self._row >= 0)
        if len(changed) and np.isin(changed, self._acting).all():
            rows = torch.from_numpy(np.searchsorted(self._acting, changed))
            self._rows.assign(rows, torch.from_numpy(self._member[changed]))
        elif len(changed) or len(live) <= (1 - self._idle_share) * len(self._acting):
            self._acting = live
            self._rows.select(torch.from_numpy(self._member[live]))
            is_all = len(live) == self.env.num_envs
            self._acting_index = slice(None) if is_all else torch.from_numpy(live)

    @override
    def _take_over(self, begun: list[tuple[int, tuple[Episodes, int]]]) -> None:
        super()._take_over(begun)
        if self._info is not None:
            self._info.begin(np.array([env for env, _ in begun], dtype=np.int64))
        if self._recurrent is not None:
            self._recurrent.reset(torch.tensor([env for env, _ in begun]))
