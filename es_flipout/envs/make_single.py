"""One official Gymnasium environment, in its wrappers; whatever it raises is named in one line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from es_flipout.envs.keyword_arguments import check_keywords, keyword_hint
from es_flipout.envs.known_ids import check_known, import_module_of
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.envs.mujoco.rendering import VARIABLE, lacks_display
from es_flipout.envs.native import native_ids
from es_flipout.envs.time_limit import check_limit, with_limit
from es_flipout.envs.values import EnvFault
from es_flipout.envs.weighted_reward import WeightedReward, check_weights
from es_flipout.envs.wrappers import find_wrappers
from es_flipout.error_text import FOREIGN, error_text
from es_flipout.named_spec import NamedSpec


def make_env(
    env_id: str,
    wrappers: Sequence[NamedSpec] = (),
    *,
    reward_weights: Sequence[float] = (),
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """Makes one official environment and wraps it.

    With a `render_mode`, MuJoCo draws by EGL from then on if there is no display and MUJOCO_GL is not set.
    An environment that has no time limit gets one of `DEFAULT_EPISODE_STEPS` env steps, unless
    `max_episode_steps` is -1.

    Args:
        env_id: Gymnasium id, or MODULE:ID to import a module that registers it first. The modules of some
            packages are found by the id alone (`known_ids.PACKAGES`).
        wrappers: innermost first; each a name in gymnasium.wrappers, MODULE:CLASS, or a mapping of `name`
            and keyword arguments, such as `{"name": "FrameStackObservation", "stack_size": 4}`.
        reward_weights: for a reward that is a vector: the weights of its parts, whose sum it becomes.
        **kwargs: keyword arguments of `gymnasium.make`.

    Raises:
        ValueError: if Gymnasium does not know the id, a wrapper does not exist, remembers earlier episodes
            or takes other arguments, or whatever is called to make them raises anything: the message is
            `ID: Type: text`.
    """
    name = import_module_of(env_id)
    check_known(env_id, native_ids())
    check_keywords(env_id, kwargs)
    check_limit(kwargs.get("max_episode_steps"))
    check_weights(reward_weights)
    found = find_wrappers(wrappers)
    if "render_mode" in kwargs and lacks_display():
        os.environ.setdefault(VARIABLE, "egl")  # what Gymnasium tries first would fail
    try:
        with deprecations_silenced():
            # What Gymnasium's checker looks at is checked by `GuardedEnv`, in every episode.
            env = gym.make(name, **{"disable_env_checker": True, **kwargs})
    except FOREIGN as error:
        raise EnvFault(f"{env_id}: {error_text(error)}{keyword_hint(kwargs)}") from error
    for each in found:
        env = each.around(env, env_id)
    if len(reward_weights):
        env = WeightedReward(env, reward_weights)
    return with_limit(env, kwargs.get("max_episode_steps"))
