"""What each of N envs has beside the physics: the entries of its episode's state, and noise numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from es_flipout.envs.engines.contract import Ids
from es_flipout.envs.masks import where_rows
from es_flipout.envs.mujoco.checked_task import NOISE, CheckedTask
from es_flipout.envs.mujoco.start import StartBatch
from es_flipout.step_noise import fill_normal, normal


class EnvState:
    """The state of N envs.

    Noise follows from the key of an episode and the number of steps that it has made, so that it does not
    depend on who plays the episode; where it is computed by compiled code, and where by torch, it is the same
    up to rounding.

    Attributes:
        fields: all that hooks read, [N, ...] each: the physics' fields, the entries of the state, and noise;
            live.
        entries: those of the state, by name.
        noise: [N, K]; K = 0 if the task has none.
        keys: of the noise, int64 [N].
        draws: whether there is noise; it is 0 if not.
    """

    def __init__(self, task: CheckedTask, physics: Mapping[str, Tensor], num_envs: int) -> None:
        """Begins with zeros.

        Args:
            task: the task.
            physics: the fields of the engine, on whose device the state is.
            num_envs: N.
        """
        like = physics["qpos"]
        self.entries = {name: like.new_zeros(num_envs, *shape) for name, shape in task.state.items()}
        self.noise = like.new_zeros(num_envs, task.task.noise)
        self.keys = torch.zeros(num_envs, dtype=torch.int64, device=like.device)
        has_noise = task.task.noise > 0
        self.fields: dict[str, Tensor] = {
            **physics,
            **self.entries,
            **({NOISE: self.noise} if has_noise else {}),
        }
        self.draws = has_noise and task.is_randomized

    def begin(self, ids: Ids, starts: StartBatch) -> None:
        """Begins episodes in envs, [M]."""
        index = torch.from_numpy(ids).long().to(self.noise.device)
        for name, values in self.entries.items():
            values[index] = torch.from_numpy(starts.state[name]).to(values)
        self.keys[index] = torch.from_numpy(starts.noise_keys).to(self.keys.device)
        if self.draws:
            mask = np.zeros(len(self.noise), np.bool_)
            mask[ids] = True
            self.draw(torch.from_numpy(mask).to(self.keys.device), torch.zeros_like(self.keys))

    def begin_where(self, mask: Tensor, entries: Mapping[str, Tensor], keys: Tensor) -> None:
        """Begins episodes in the envs of a mask, bool [N], without looking at it.

        Args:
            mask: which envs.
            entries: how their states begin, [N, ...] each; ignored elsewhere.
            keys: of their noise, int64 [N]; likewise.
        """
        for name, values in self.entries.items():
            values.copy_(where_rows(mask, entries[name], values))
        self.keys.copy_(torch.where(mask, keys, self.keys))

    def draw(self, live: Tensor, steps: Tensor) -> None:
        """Draws the noise of live envs, bool [N], which have made so many steps, int64 [N]."""
        if self.noise.device.type == "cpu":
            fill_normal(self.noise.numpy(), live.numpy(), self.keys.numpy(), steps.numpy())
        else:
            drawn = normal(self.keys, steps, self.noise.shape[1], self.noise.dtype)
            self.noise.copy_(where_rows(live, drawn, self.noise))

    def draw_fused(self, live: NDArray[np.bool_], elapsed: NDArray[np.int64]) -> None:
        """Draws the noise of live envs, bool [N], after a step that is not counted yet in int64 [N]."""
        if self.draws:
            fill_normal(self.noise.numpy(), live, self.keys.numpy(), elapsed + 1)

    def keep(self, entries: Mapping[str, Tensor], live: Tensor | None = None) -> None:
        """Takes over entries, [N, ...] each, in live envs, bool [N]; in all of them if None."""
        for name, value in entries.items():
            mine = self.entries[name]
            mine.copy_(value if live is None else where_rows(live, value, mine))

    def close(self) -> None:
        """Lets go of the physics' memory."""
        self.fields = {}
