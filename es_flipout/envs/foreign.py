"""Any vector environment as a `TorchVectorEnv`: NumPy or torch, in any autoreset mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor
from typing_extensions import override

from es_flipout.envs.contract import Mask, TorchVectorEnv, failure_info


class ForeignVectorEnv(TorchVectorEnv):
    """Wraps a vector environment from elsewhere.

    With autoreset DISABLED, envs are reset on request, by `options={"reset_mask": mask}` and a list of
    seeds, as Gymnasium's own vector environments accept them. A vector environment that resets itself
    (NEXT_STEP, SAME_STEP) decides when and how an env starts: an env starts when its own reset is due, and
    seeds are passed on only when all envs start. In NEXT_STEP mode the step that resets an env counts for no
    episode. In no mode does a reward end up in the wrong episode.

    All envs are stepped or none, so envs without an episode idle; their observations mean nothing. If the
    vector environment raises, the episodes of all live envs have failed, and all envs are reset. If that
    fails too, as with Gymnasium's AsyncVectorEnv, the error is raised.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Wraps an environment.

        Args:
            env: a vector environment that declares `metadata["autoreset_mode"]`.
            device: device of the tensors that `reset` and `step` return.
            dtype: floating dtype of observations and rewards.

        Raises:
            ValueError: if the environment does not declare how it resets itself, or its actions are of a kind
                that is not supported.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode is None:
            raise ValueError(
                f'{env} does not declare how it resets itself: its metadata must have an "autoreset_mode" '
                "(a gymnasium.vector.AutoresetMode)"
            )
        self.env = env
        self.mode = AutoresetMode(mode)
        self.device = torch.device(device)
        self.dtype = dtype
        self.num_envs = env.num_envs
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.restarts_anytime = self.mode == AutoresetMode.DISABLED
        self._takes_tensors = False
        self._idle_action = _some_action(env.action_space)
        self._terminated = np.ones(self.num_envs, dtype=np.bool_)
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)
        self._over = np.ones(self.num_envs, dtype=np.bool_)  # envs whose last step ended an episode
        self._fresh = np.zeros(self.num_envs, dtype=np.bool_)  # envs that show a first observation
        self._observations: Tensor | None = None

    @property
    def _ended(self) -> Mask:
        return self._terminated | self._truncated

    @override
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        mask, seeds = self._reset_mask(options), list(self._env_seeds(seed))
        live, info = ~self._ended & ~mask, {}
        try:
            self._start(mask, seeds)
        except Exception as error:  # a user's code may raise anything
            info = self._recover(error, live | mask)
        started = mask & self._fresh
        self._terminated[started] = False
        self._truncated[started] = False
        if info:
            self._terminated |= info["failed"]
        return self._shown(), info | {"started": started}

    def _start(self, mask: Mask, seeds: list[int | None]) -> None:
        """Starts those envs of `mask` that can start."""
        stuck = self._ended.all() and not (mask & self._fresh).any()
        if mask.all() or self._observations is None or (stuck and not self.restarts_anytime):
            first = next((each for each, selected in zip(seeds, mask, strict=True) if selected), None)
            self._reset_all(seeds if self.restarts_anytime else first)
        elif self.restarts_anytime:
            self._reset_some(mask, seeds)

    @override
    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        self._check_actions(actions)
        live, info = ~self._ended, {}
        rewards = np.zeros(self.num_envs)
        given = np.where(_as_column(live, actions.ndim), actions.cpu().numpy(), self._idle_action)
        try:
            if self.restarts_anytime:
                self._reset_some(self._over.copy(), None)  # it may refuse to step an ended env
            rewards, terminated, truncated = self._step_all(given.astype(self._idle_action.dtype))
        except Exception as error:  # a user's code may raise anything
            info = self._recover(error, live)
            terminated, truncated = np.ones_like(live), np.zeros_like(live)
        self._terminated |= live & terminated
        self._truncated |= live & truncated
        return (
            self._shown(),
            torch.from_numpy(np.where(live, rewards, 0.0)).to(self.device, self.dtype),
            torch.from_numpy(self._terminated.copy()).to(self.device),
            torch.from_numpy(self._truncated.copy()).to(self.device),
            info,
        )

    def _recover(self, error: Exception, lost: Mask) -> dict[str, Any]:
        """Resets all envs after an error; returns the info entries of those in `lost`, which have failed."""
        try:
            self._reset_all(None)
        except Exception:
            raise error from None
        failure = f"{type(error).__name__}: {error}"
        return failure_info(dict.fromkeys(np.flatnonzero(lost).tolist(), failure), self.num_envs)

    @override
    def retire(self, mask: Mask) -> None:
        self._terminated |= mask & ~self._truncated

    @override
    def close_extras(self, **kwargs: Any) -> None:
        self.env.close(**kwargs)

    def _reset_all(self, seed: int | list[int | None] | None) -> None:
        if isinstance(seed, list) and all(each is None for each in seed):
            seed = None
        observations, _ = self.env.reset(seed=seed)  # type: ignore[arg-type] # lists, as Gymnasium's own take
        self._keep(observations)
        self._fresh[:], self._over[:] = True, False

    def _reset_some(self, mask: Mask, seeds: list[int | None] | None) -> None:
        if not mask.any():
            return
        observations, _ = self.env.reset(seed=seeds, options={"reset_mask": mask})  # type: ignore[arg-type]
        self._keep(observations)
        self._fresh[mask], self._over[mask] = True, False

    def _step_all(self, actions: Any) -> tuple[Any, Any, Any]:
        """Steps the wrapped environment; returns its rewards, terminated and truncated as arrays."""
        given = torch.from_numpy(actions).to(self.device) if self._takes_tensors else actions
        observations, *results, _ = self.env.step(given)
        self._keep(observations)
        rewards, terminated, truncated = (
            each.cpu().numpy() if isinstance(each, Tensor) else np.asarray(each) for each in results
        )
        over = terminated.astype(np.bool_) | truncated.astype(np.bool_)
        self._fresh = {
            AutoresetMode.DISABLED: np.zeros_like(over),
            AutoresetMode.NEXT_STEP: self._over,
            AutoresetMode.SAME_STEP: over,
        }[self.mode]
        self._over = over.copy()
        return rewards, terminated, truncated

    def _keep(self, observations: Any) -> None:
        self._takes_tensors = isinstance(observations, Tensor)
        self._observations = torch.as_tensor(observations).to(self.device, self.dtype, copy=True)

    def _shown(self) -> Tensor:
        assert self._observations is not None
        return self._observations.clone()


def _as_column(mask: Mask, ndim: int) -> Mask:
    return mask.reshape(-1, *(1,) * (ndim - 1))


def _some_action(space: Any) -> Any:
    """Returns a valid action for every env, as close to zero as possible."""
    if isinstance(space, spaces.Box):
        return np.zeros(space.shape, space.dtype).clip(space.low, space.high)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.copy()
    kind = type(space).__name__
    raise ValueError(f"{kind} actions are not supported (Box, Discrete and MultiDiscrete are)")
