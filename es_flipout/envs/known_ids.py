"""From MODULE:ID to an id that Gymnasium knows, and what to try if it does not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import import_module

import gymnasium as gym

from es_flipout.envs.values import EnvFault
from es_flipout.error_text import FOREIGN, error_text

PACKAGES = {
    r"ALE/": "ale_py",
    r"dm_control/": "shimmy",
    r"(MiniGrid|BabyAI)-": "minigrid",
    r"(Fetch|Hand|AdroitHand|PointMaze|AntMaze|FrankaKitchen)": "gymnasium_robotics",
    r"Panda": "panda_gym",
    r"(highway|merge|roundabout|parking|intersection|racetrack)-": "highway_env",
    r"(mo-|deep-sea-treasure|minecart|resource-gathering|four-room|fruit-tree)": "mo_gymnasium",
    r"Meta-World/": "metaworld",
    r"FlappyBird-": "flappy_bird_gymnasium",
    r"myo[A-Z]": "myosuite",
}
"""Beginnings of ids, as regular expressions, and the module that registers them."""


def import_module_of(env_id: str) -> str:
    """Imports the module of MODULE:ID, if there is one, and returns the ID.

    Raises:
        ValueError: if the module cannot be imported, whatever it raises.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            import_module(module)
        except FOREIGN as error:
            raise EnvFault(f"{env_id}: {error_text(error)}") from error
    return name


def check_known(env_id: str, native_ids: Sequence[str]) -> None:
    """Checks that an id, its module imported, is registered in Gymnasium.

    Raises:
        ValueError: if it is not; the message says what to try.
    """
    module, _, name = env_id.rpartition(":")
    if name in gym.registry:
        return
    known = [*native_ids, *gym.registry]
    package = next((each for start, each in PACKAGES.items() if re.match(start, name)), None)
    close = difflib.get_close_matches(name, known, n=1)
    if package and not module:
        hint = f"; if a package registers it, name its module: {package}:{name}"
    else:
        hint = f"; did you mean {close[0]}?" if close else ""
    example = "" if module or package else f", if need be of a module: MODULE:{name}"
    raise ValueError(
        f"unknown environment {name!r}{hint} "
        f"(native: {', '.join(native_ids)}; and every id registered in Gymnasium{example})"
    )
