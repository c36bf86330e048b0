"""Makes an environment anew for every episode, for those that keep something from one to the next."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.utils import RecordConstructorArgs
from typing_extensions import override


class RemakeOnReset(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Closes the environment at a reset and makes it anew from its spec, except at the first.

    BipedalWalker's physics world, for example, outlives a reset, so that an episode depends on those before
    it, and a return on which env played it. In this wrapper episodes depend on their reset seed alone.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Takes an environment made by `gymnasium.make`, without further wrappers.

        Raises:
            ValueError: if the environment does not say how it is made, or a wrapper in it does not.
        """
        gym.Wrapper.__init__(self, env)
        RecordConstructorArgs.__init__(self)
        spec = env.spec
        if spec is None or any(wrapper.kwargs is None for wrapper in spec.additional_wrappers):
            raise ValueError(f"{env} cannot be made anew from its spec: name RemakeOnReset first, innermost")
        self._spec_inside = spec
        self._has_been_reset = False

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in a new environment; without a seed, the last one's generator is kept."""
        if self._has_been_reset:
            generator = self.env.unwrapped.np_random
            self.env.close()
            self.env = gym.make(self._spec_inside, disable_env_checker=True)
            if seed is None:
                self.env.unwrapped.np_random = generator
        self._has_been_reset = True
        return self.env.reset(seed=seed, options=options)
