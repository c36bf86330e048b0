"""How an episode begins: all that follows from its reset seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Start:
    """The start of an episode; `StartBatch` holds M of them.

    Attributes:
        qpos: positions, float64 [nq].
        qvel: velocities, float64 [nv].
        state: entries of the episode's own state, float64 [...] each.
        model: MjModel fields that are the episode's own, and all that MuJoCo derives from them.
        noise_key: key of its noise.
    """

    qpos: Floats
    qvel: Floats
    state: Mapping[str, Floats]
    model: Mapping[str, NDArray[Any]]
    noise_key: int

    @property
    def is_finite(self) -> bool:
        """Whether positions and velocities are numbers."""
        return bool(np.isfinite(self.qpos).all() and np.isfinite(self.qvel).all())

    def equals(self, other: Start) -> bool:
        """Returns whether another start is the same to the last bit."""
        return (
            np.array_equal(self.qpos, other.qpos, equal_nan=True)
            and np.array_equal(self.qvel, other.qvel, equal_nan=True)
            and self.noise_key == other.noise_key
            and all(
                np.array_equal(mine[name], others[name], equal_nan=True)
                for mine, others in ((self.state, other.state), (self.model, other.model))
                for name in mine
            )
        )


@dataclass(frozen=True)
class StartBatch:
    """The starts of M episodes, [M, ...] each; see `Start`."""

    qpos: Floats
    qvel: Floats
    state: Mapping[str, Floats]
    model: Mapping[str, NDArray[Any]]
    noise_keys: NDArray[np.int64]

    @classmethod
    def of(cls, starts: Sequence[Start]) -> StartBatch:
        """Stacks M starts of a task."""
        first = starts[0]
        return cls(
            np.stack([each.qpos for each in starts]),
            np.stack([each.qvel for each in starts]),
            {name: np.stack([each.state[name] for each in starts]) for name in first.state},
            {name: np.stack([each.model[name] for each in starts]) for name in first.model},
            np.array([each.noise_key for each in starts], np.int64),
        )

    def part(self, envs: slice) -> StartBatch:
        """Returns some of them."""
        return StartBatch(
            self.qpos[envs],
            self.qvel[envs],
            {name: each[envs] for name, each in self.state.items()},
            {name: each[envs] for name, each in self.model.items()},
            self.noise_keys[envs],
        )
