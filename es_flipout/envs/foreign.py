"""Any vector environment as a `TorchVectorEnv`: NumPy, torch or JAX, in any autoreset mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor
from typing_extensions import override

from es_flipout.described import described
from es_flipout.envs import values
from es_flipout.envs.array_kinds import converter_to
from es_flipout.envs.contract import FailureReason, Mask, TorchVectorEnv, failure_info, torch_dtype
from es_flipout.envs.flat_observations import first_array, observation_tensor
from es_flipout.envs.numpy_vector_env import NumpyVectorEnv
from es_flipout.envs.values import EnvFault
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.policies import flat_box


def torch_vector_env(env: Any) -> TorchVectorEnv:
    """Returns a vector environment as one of torch tensors: itself, what is in it, or wrapped.

    Raises:
        TypeError: if it is no vector environment.
        ValueError: see `ForeignVectorEnv`.
    """
    if isinstance(env, TorchVectorEnv):
        return env
    if isinstance(env, NumpyVectorEnv):
        return env.env
    if isinstance(env, VectorEnv):
        return ForeignVectorEnv(env)
    single = f"{env}, an environment of one env" if isinstance(env, gym.Env) else described(env)
    raise TypeError(
        f"a vector environment is needed, got {single}: make one by es_flipout.make_vec(ID, num_envs) or "
        "gymnasium.make_vec(ID, num_envs=...)"
    )


class ForeignVectorEnv(TorchVectorEnv):
    """Wraps a vector environment from elsewhere.

    With autoreset DISABLED, envs are reset on request, by `options={"reset_mask": mask}` and a list of
    seeds, as Gymnasium's own vector environments accept them. A vector environment that resets itself
    (NEXT_STEP, SAME_STEP) decides when and how an env starts: an env starts when its own reset is due, and
    seeds are passed on only when all envs start. In NEXT_STEP mode the step that resets an env counts for no
    episode. In no mode does a reward end up in the wrong episode.

    Observations and rewards may be arrays of NumPy, torch or any library that shares memory by DLPack, such
    as JAX; actions are then of the same kind, on the same device. Dict, Tuple and other observations that
    are no Box are flattened; see `FlatBox`.

    All envs are stepped or none, so envs without an episode idle; their observations mean nothing. If the
    vector environment raises, the episodes of all live envs have failed, and all envs are reset. If that
    fails too, as with Gymnasium's AsyncVectorEnv, the error is raised. So is an `EnvFault` if the vector
    environment returns what it must not, for it would do so again.
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
            dtype: floating dtype of observations.

        Raises:
            ValueError: if the environment does not declare its spaces, its number of envs and how it resets
                itself, or observations or actions are of a kind that is not supported.
        """
        self.env = env
        self.mode = _declared_mode(env)
        self.device = torch.device(device)
        self.dtype = dtype
        self.num_envs = _declared(env, "num_envs")
        self.single_observation_space: spaces.Box = flat_box(_declared(env, "single_observation_space"))
        self.single_action_space = _declared(env, "single_action_space")
        # Not as the environment declares them: some declare those of one env.
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.restarts_anytime = self.mode == AutoresetMode.DISABLED
        self._to_its_kind: Callable[[Tensor], Any] | None = None  # from tensors to its arrays
        torch_dtype(self.action_space)
        self._idle_action = torch.from_numpy(_some_action(self.action_space)).to(self.device)
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
        except FOREIGN as error:
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
        live = ~self._ended
        is_live = torch.from_numpy(live).to(self.device)
        rewards = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        chosen = actions.detach().to(self.device, self._action_dtype)
        given = torch.where(is_live.reshape(-1, *(1,) * (actions.ndim - 1)), chosen, self._idle_action)
        try:
            if self.restarts_anytime:
                self._reset_some(self._over.copy(), None)  # it may refuse to step an ended env
            rewards, terminated, truncated, reasons = self._step_all(given)
            info = failure_info({i: text for i, text in reasons.items() if live[i]}, self.num_envs)
        except FOREIGN as error:
            info = self._recover(error, live)
            terminated, truncated = np.ones_like(live), np.zeros_like(live)
        self._terminated |= live & terminated
        self._truncated |= live & truncated
        return (
            self._shown(),
            torch.where(is_live, rewards, 0.0),
            torch.from_numpy(self._terminated.copy()).to(self.device),
            torch.from_numpy(self._truncated.copy()).to(self.device),
            info,
        )

    def _recover(self, error: BaseException, lost: Mask) -> dict[str, Any]:
        """Resets all envs after an error; returns the info entries of those in `lost`, which have failed."""
        if isinstance(error, EnvFault):
            raise error
        try:
            self._reset_all(None)
        except EnvFault:
            raise
        except FOREIGN:
            raise error from None
        return failure_info(dict.fromkeys(np.flatnonzero(lost).tolist(), error_text(error)), self.num_envs)

    @override
    def retire(self, mask: Mask) -> None:
        self._terminated |= mask & ~self._truncated

    @override
    def close_extras(self, **kwargs: Any) -> None:
        self.env.close(**kwargs)

    def _reset_all(self, seed: int | list[int | None] | None) -> None:
        if isinstance(seed, list) and all(each is None for each in seed):
            seed = None
        self._keep_first(self.env.reset(seed=seed))  # type: ignore[arg-type] # lists, as Gymnasium's own take
        self._fresh[:], self._over[:] = True, False

    def _reset_some(self, mask: Mask, seeds: list[int | None] | None) -> None:
        if not mask.any():
            return
        self._keep_first(self.env.reset(seed=seeds, options={"reset_mask": mask}))  # type: ignore[arg-type]
        self._fresh[mask], self._over[mask] = True, False

    def _step_all(self, actions: Tensor) -> tuple[Tensor, Mask, Mask, dict[int, str]]:
        """Steps the wrapped environment; returns rewards, terminated, truncated, and why envs have failed."""
        assert self._to_its_kind is not None
        observations, *results, info = values.step_result(self.env.step(self._to_its_kind(actions)))
        self._keep(observations, "step")
        rewards = values.numbers(results[0], self.num_envs, self.device)
        terminated = values.flags(results[1], self.num_envs, "terminated")
        truncated = values.flags(results[2], self.num_envs, "truncated")
        over = terminated | truncated
        if self.mode is AutoresetMode.SAME_STEP:
            self._fresh = over.copy()
        else:
            self._fresh = self._over if self.mode is AutoresetMode.NEXT_STEP else np.zeros_like(over)
        self._over = over
        return rewards, terminated, truncated, _failures(info)

    def _keep_first(self, result: Any) -> None:
        observations, _ = values.reset_result(result)
        self._keep(observations, "reset")

    def _keep(self, observations: Any, method: str) -> None:
        space, count = self.single_observation_space, self.num_envs
        self._observations = observation_tensor(
            observations, space, count, method, device=self.device, dtype=self.dtype
        )
        if self._to_its_kind is None:
            self._to_its_kind = converter_to(first_array(observations, space))

    def _shown(self) -> Tensor:
        assert self._observations is not None
        return self._observations.clone()


def _declared_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """Returns how an environment says that it resets itself."""
    metadata = getattr(env, "metadata", None)
    mode = metadata.get("autoreset_mode") if isinstance(metadata, Mapping) else None
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise ValueError(
            f'{env} does not declare how it resets itself: its metadata must have an "autoreset_mode" '
            f"(a gymnasium.vector.AutoresetMode), got {described(mode)}"
        ) from None


def _declared(env: VectorEnv[Any, Any, Any], name: str) -> Any:
    """Returns what an environment must declare of itself: its number of envs, or a space."""
    value = getattr(env, name, None)
    if name == "num_envs":
        is_right, needed = isinstance(value, int | np.integer) and value >= 1, "an integer >= 1"
    else:
        is_right, needed = isinstance(value, gym.Space), "a gymnasium.Space"
    if not is_right:
        raise ValueError(
            f"{type(env).__name__} is a vector environment whose {name} is {described(value)}, "
            f"{needed} is needed"
        )
    return value


def _failures(info: Mapping[str, Any]) -> dict[int, str]:
    """Returns why envs have failed, by env, if the environment is one of ours that someone has wrapped."""
    entry = info.get("failure")
    if not isinstance(entry, np.ndarray) or entry.ndim != 1:
        return {}
    return {i: str(each) for i, each in enumerate(entry) if isinstance(each, FailureReason)}


def _some_action(space: Any) -> Any:
    """Returns a valid action for every env, as close to zero as possible."""
    if isinstance(space, spaces.Box):
        return np.zeros(space.shape, space.dtype).clip(space.low, space.high)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start.copy()
    kind = type(space).__name__
    raise ValueError(f"{kind} actions are not supported (Box, Discrete and MultiDiscrete are)")
