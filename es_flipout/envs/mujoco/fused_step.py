"""A compiled task at work on the arrays of one environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.compilation import compiled
from es_flipout.envs.engines.contract import Ids, PhysicsEngine
from es_flipout.envs.fused.compiled_task import CompiledTask, NotFusedError
from es_flipout.envs.mujoco.checked_task import CheckedTask
from es_flipout.envs.mujoco.env_state import EnvState

__all__ = ["FusedStep", "NotFusedError"]


class FusedStep:
    """What a task computes after each step of N envs, by one compiled function.

    Attributes:
        task: the compiled task.
        actions: those of the step, float32 [N, A], to be filled in.
        controls: the same in float64, [N, A], to be filled in: the engine's, if these are the actions.
        observations: of all envs, [N, O].
        rewards: of the last step, float64 [N].
        terminated: whether the task ended the episode in the last step, bool [N].
        control: makes what the engine gets of `actions`; takes which envs are live, bool [N]. None if
            `controls` are the engine's.
        step: computes everything about a step of live envs under `actions`; takes which these are, bool [N].
    """

    def __init__(
        self,
        task: CheckedTask,
        engine: PhysicsEngine,
        state: EnvState,
        observations: Tensor,
        located: Tensor,
    ) -> None:
        """Compiles the task, or finds it compiled.

        Args:
            task: the task.
            engine: on the host, with all envs at the start of an episode.
            state: of the envs, likewise.
            observations: where observations are kept, [N, O].
            located: where `locate` is kept, [N, ...].

        Raises:
            NotFusedError: if it cannot be compiled; the message says why.
        """
        fields = {name: state.fields[name] for name in task.field_names}
        self.task = CompiledTask(task, fields, observations.dtype)
        num_envs, num_actions = len(observations), len(task.action_range[0])
        self.observations: NDArray[Any] = observations.numpy()
        self.rewards = np.zeros(num_envs)
        self.terminated = np.zeros(num_envs, np.bool_)
        self.actions: NDArray[np.float32] = np.zeros((num_envs, num_actions), np.float32)
        arrays = {
            "actions": self.actions,
            "observations": self.observations,
            "rewards": self.rewards,
            "terminated": self.terminated,
            "located": located.numpy(),
        }
        inputs = {name: engine.input(name).numpy() for name in self.task.inputs}
        self.controls: NDArray[np.float64] = (
            np.zeros((num_envs, num_actions)) if task.has_controls else engine.input("ctrl").numpy()
        )
        bound = self.task.bind({name: values.numpy() for name, values in fields.items()}, arrays, inputs)
        self._observe, self.step, self.control = bound.observe, bound.step, bound.control

    def observe(self, ids: Ids) -> None:
        """Observes and locates envs that have been reset, [M]."""
        mask = np.zeros(len(self.rewards), np.bool_)
        mask[ids] = True
        self._observe(mask)

    def end(
        self,
        live: NDArray[np.bool_],
        elapsed: NDArray[np.int64],
        limit: int,
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> int:
        """Counts the step that live envs have made; see `end_steps`."""
        count: int = end_steps(live, self.terminated, self.rewards, elapsed, limit, terminated, truncated)
        return count


@compiled
def end_steps(
    live: Any, ended: Any, rewards: Any, elapsed: Any, limit: int, terminated: Any, truncated: Any
) -> int:
    """Counts the step that live envs have made; returns how many episodes it ended.

    Args:
        live: which envs have been stepped, bool [N].
        ended: which of them the task has terminated, bool [N].
        rewards: of the step, float64 [N]; 0 is written for the others.
        elapsed: steps of the episode, int64 [N].
        limit: after which it is truncated; 0 for none.
        terminated: which episodes have terminated, bool [N].
        truncated: which have been truncated, bool [N].
    """
    count = 0
    for n in range(len(live)):
        if not live[n]:
            rewards[n] = 0
            continue
        elapsed[n] += 1
        terminated[n] = ended[n]
        truncated[n] = 0 < limit <= elapsed[n]
        if terminated[n] or truncated[n]:
            count += 1
    return count
