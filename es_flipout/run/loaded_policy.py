"""A trained policy in other code: `load_policy(run).predict(observation)`, as in Stable-Baselines3.

The normalization of observations and the bounds of actions are part of the policy, so that `predict` takes
what the environment returns and returns what it takes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from es_flipout.envs.guarded_env import close_env, spaces_of
from es_flipout.envs.masks import where_rows
from es_flipout.parameters import leading_parameter
from es_flipout.policies import FlatBox
from es_flipout.rollout.policy_actions import PolicyActions
from es_flipout.rollout.recurrence import is_recurrent
from es_flipout.run import checkpoint
from es_flipout.run.build import make_policy, official_maker
from es_flipout.run.config import Config
from es_flipout.run.observation_rows import observation_rows
from es_flipout.run.run_directory import RunDirectory


class LoadedPolicy:
    """The center of a run at one of its checkpoints.

    Attributes:
        env_id: id of the environment that it was trained in.
        observation_space: of a single environment, as the environment has it.
        flat_space: of what `module` takes: the same if it is a Box, otherwise flattened (`FlatBox`).
        action_space: of a single environment.
        module: the policy, a `torch.nn.Module` in evaluation mode. It takes observations of `flat_space`
            [N, ...]; a recurrent one also takes and returns a state.
        config: of the run.
        checkpoint: the file that the policy is from.
        generation: generations that had been finished by then; None if the file does not say.
        env_steps: live env steps by then; None if the file does not say.
    """

    def __init__(self, config: Config, path: Path, device: torch.device | str = "cpu") -> None:
        """Loads the policy of a checkpoint; see `load_policy`."""
        self.config = config
        self.env_id = config.env.id
        self.checkpoint = path
        env = self.make_env()
        self.flat_space, self.action_space = spaces_of(env)
        close_env(env)
        self.observation_space: gym.Space[Any] = (
            self.flat_space.original if isinstance(self.flat_space, FlatBox) else self.flat_space
        )
        self.module: nn.Module = make_policy(config.policy, self.flat_space, self.action_space).eval()
        state = checkpoint.load(path)
        checkpoint.load_policy(self.module, state, path)
        self.module.to(device)
        self.generation: int | None = state.get("generation")
        self.env_steps: int | None = state.get("env_steps")
        self._actions = PolicyActions(self.module, self.action_space, device)
        self._like = leading_parameter(self.module)

    def make_env(self, **kwargs: Any) -> gym.Env[Any, Any]:
        """Makes the environment of the run, with its keyword arguments and wrappers.

        Args:
            **kwargs: further keyword arguments of `gymnasium.make`, for example `render_mode="human"`.

        Raises:
            ValueError: if it cannot be made; the message is one line.
        """
        return official_maker(self.config.env)(**kwargs)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        deterministic: bool = True,
        *,
        episode_start: ArrayLike | Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Returns the action for an observation, or the actions for a batch of them.

        Args:
            observation: as the environment returns it: an array or tensor of the shape of
                `observation_space`, or [N, ...] for a batch, of any real dtype; a dict or tuple of those if
                the space is one.
            state: of a recurrent policy, as the last call returned it; None at the start of an episode. Other
                policies have none.
            deterministic: for code that is written for Stable-Baselines3. A policy found by evolution has no
                distribution to draw from: its action is the same either way.
            episode_start: for a batch and a state: whose episode starts with this observation, bool [N].

        Returns:
            The action, of the shape and dtype of `action_space`, or [N, ...] for a batch: a NumPy array or
            number, or a tensor if the observation is of tensors. And the next state; None if it has none.

        Raises:
            ValueError: if the observation or the state has another shape, or is not made of numbers.
        """
        rows, is_batch, is_torch = observation_rows(observation, self.flat_space, self._like, self.env_id)
        with torch.no_grad():
            if is_recurrent(self.module):
                given = self._state(state, len(rows), episode_start)
                actions, state = self.module(rows, given)
            else:
                actions, state = self.module(rows), None
        actions = self._actions.checked(actions, len(rows))
        if not is_torch:
            actions = actions.cpu().numpy()
        return (actions if is_batch else actions[0]), state

    def _state(self, state: Any, count: int, episode_start: ArrayLike | Tensor | None) -> Any:
        """Returns the state of N episodes, of which some may begin."""
        single: Any = self.module.initial_state(1)  # type: ignore[operator] # it is recurrent
        begun = tree_map(lambda leaf: leaf.expand(count, *leaf.shape[1:]).clone(), single)
        if state is None:
            return begun
        leaves, structure = tree_flatten(state)
        wanted, its_structure = tree_flatten(begun)
        if structure != its_structure or any(
            not isinstance(each, Tensor) or each.shape != leaf.shape
            for each, leaf in zip(leaves, wanted, strict=True)
        ):
            raise ValueError(
                f"the state must be the one that predict returned for {count} observation"
                f"{'' if count == 1 else 's'} of the same episodes"
            )
        if episode_start is None:
            return state
        starts = torch.as_tensor(episode_start, dtype=torch.bool, device=self._like.device).reshape(-1)
        if len(starts) != count:
            raise ValueError(
                f"episode_start must have {count} values, one per observation, got {len(starts)}"
            )
        return tree_map(partial(where_rows, starts), begun, state)


def load_policy(
    run: str | Path, *, checkpoint: str | None = None, device: torch.device | str = "cpu"
) -> LoadedPolicy:
    """Loads a trained policy.

    Example:
        policy = load_policy("runs/InvertedPendulum-v5-seed0")
        env = policy.make_env()
        observation, _ = env.reset()
        action, state = policy.predict(observation)

    Args:
        run: a run directory, or a checkpoint file in the `checkpoints` folder of one.
        checkpoint: of a run directory: "best", "last" or a checkpoint file; None for the best if there is
            one, otherwise the last.
        device: of the policy.

    Returns:
        The policy. Modules of your own that the run's configuration names must be importable.

    Raises:
        ValueError: if there is no such run or checkpoint, it is damaged, its environment or policy cannot be
            made, or `run` is a checkpoint and `checkpoint` another; the message is one line.
    """
    path = Path(run).expanduser()
    if path.is_file():
        if checkpoint is not None:
            raise ValueError(f"{path} is a checkpoint itself; omit checkpoint={checkpoint!r}")
        directory = RunDirectory.open(path.absolute().parent.parent)
        return LoadedPolicy(directory.read_config(), path, device)
    directory = RunDirectory.open(path)
    return LoadedPolicy(directory.read_config(), directory.find_checkpoint(checkpoint), device)
