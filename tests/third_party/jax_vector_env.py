"""A functional JAX environment as a `gymnasium.vector.VectorEnv`: one jitted function per call.

This is all that environments in the style of brax and mujoco_playground need: `reset(key)` and
`step(state, action)`, which are mapped over N states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class JaxVectorEnv(VectorEnv):
    """N states, advanced together; an env whose episode has ended waits for `reset_mask`."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        reset: Callable[[Any], Any],
        step: Callable[[Any, Any], Any],
        observation_size: int,
        action_size: int,
        num_envs: int,
        max_episode_steps: int,
    ) -> None:
        """Takes functions of one env, whose state has `obs`, `reward` and `done`."""
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.single_action_space = spaces.Box(-1.0, 1.0, (action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        def start(seeds, mask, old):
            new = jax.vmap(reset)(jax.vmap(jax.random.PRNGKey)(seeds)), jnp.zeros(num_envs, jnp.int32)
            if old is None:
                return new

            def chosen(fresh, kept):
                if fresh.ndim == 0 or fresh.shape[0] != num_envs:  # all envs share it
                    return kept
                return jnp.where(mask.reshape(-1, *(1,) * (fresh.ndim - 1)), fresh, kept)

            return jax.tree.map(chosen, new, old)

        def advance(old, actions):
            state, steps = jax.vmap(step)(old[0], actions), old[1] + 1
            return (state, steps), (state.done > 0, steps >= max_episode_steps)

        self._start, self._advance = jax.jit(start), jax.jit(advance)
        self._state = None

    def reset(self, *, seed=None, options=None):
        """Starts the envs of `reset_mask`, each from its seed."""
        mask = jnp.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        seeds = seed if isinstance(seed, list) else [seed] * self.num_envs
        seeds = jnp.asarray([0 if each is None else each % 2**31 for each in seeds])
        self._state = self._start(seeds, mask, self._state)
        return self._state[0].obs, {}

    def step(self, actions):
        """Advances all envs by JAX actions [N, A]."""
        assert isinstance(actions, jax.Array)
        self._state, (terminated, truncated) = self._advance(self._state, actions)
        return self._state[0].obs, self._state[0].reward, terminated, truncated, {}
