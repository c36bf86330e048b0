"""One env of a MuJoCo task as an ordinary `gymnasium.Env`, so that `gymnasium.make` works for it."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from es_flipout.envs.contract import FailureReason
from es_flipout.envs.mujoco.rendering import Camera
from es_flipout.envs.mujoco.task import MujocoTask
from es_flipout.envs.mujoco.vector_env import MujocoVectorEnv


class MujocoSingleEnv(gym.Env[NDArray[np.float64], NDArray[np.float32]]):
    """A `MujocoVectorEnv` of one env, with NumPy arrays and floats; it can be rendered."""

    VIEW_KEYWORDS = tuple(name for name in inspect.signature(Camera).parameters if name != "model")
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self, task: MujocoTask, *, render_mode: str | None = None, randomize: bool = False, **view: Any
    ) -> None:
        """Creates the environment, which has no time limit of its own.

        Args:
            task: the model, and what is observed and rewarded.
            render_mode: None or "rgb_array".
            randomize: see `MujocoVectorEnv`.
            **view: keyword arguments of `Camera`: width, height, camera_name ...

        Raises:
            ValueError: if the render mode is any other, or the task or the view is wrong.
        """
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
        self.render_mode = render_mode
        self._env = MujocoVectorEnv(task, 1, dtype=torch.float64, threads=1, randomize=randomize)
        self.metadata = {**self.metadata, "render_fps": round(1 / task.dt)}
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space
        self._camera = None if render_mode is None else Camera(task.model, **view)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Starts an episode."""
        super().reset(seed=seed)
        observations, info = self._env.reset(seed=None if seed is None else [seed])
        return observations[0].numpy(), self._info(info)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        """Advances the episode; an ended one stays as it is until it is reset."""
        actions = torch.as_tensor(np.asarray(action)).unsqueeze(0)
        observations, rewards, terminated, truncated, info = self._env.step(actions)
        return (
            observations[0].numpy(),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            self._info(info),
        )

    def render(self) -> NDArray[np.uint8] | None:
        """Returns a frame, uint8 [height, width, 3], if the render mode is "rgb_array"."""
        if self._camera is None:
            return None
        return self._camera.picture(self._env.engine.fields["qpos"][0].numpy())

    def close(self) -> None:
        """Stops the physics threads and closes the renderer."""
        self._env.close()
        if self._camera is not None:
            self._camera.close()

    @staticmethod
    def _info(info: dict[str, Any]) -> dict[str, Any]:
        failure = {"failure": FailureReason(info["failures"][0])} if "failures" in info else {}
        return failure | {
            name: value[0].numpy() if value.ndim > 1 else value[0].item()
            for name, value in info.items()
            if isinstance(value, torch.Tensor)
        }
