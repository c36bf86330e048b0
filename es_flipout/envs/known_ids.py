"""From an id, with its module or without, to one that Gymnasium knows; and what to try if it does not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import gymnasium as gym

from es_flipout.envs.values import EnvFault
from es_flipout.error_text import FOREIGN, error_text


@dataclass(frozen=True)
class Package:
    """A package that registers environments in Gymnasium when its module is imported.

    Attributes:
        ids: how the ids begin, or contain, as a regular expression.
        module: the module.
        install: what `pip install` calls it; the module's name if empty.
    """

    ids: str
    module: str
    install: str = ""


PACKAGES = (
    Package(r"ALE/", "ale_py", "ale-py"),
    Package(r"(dm_control|bsuite)/", "shimmy", "'shimmy[dm-control]'"),
    Package(r"(MiniGrid|BabyAI)-", "minigrid"),
    Package(r"MiniWorld-", "miniworld"),
    Package(r"[\w-]*Bullet(Env)?-", "pybullet_envs_gymnasium"),
    Package(
        r"(Fetch|Hand|AdroitHand|PointMaze|AntMaze|FrankaKitchen)", "gymnasium_robotics", "gymnasium-robotics"
    ),
    Package(r"Panda", "panda_gym", "panda-gym"),
    Package(
        r"(highway|merge|roundabout|parking|intersection|racetrack|exit|u-turn|two-way|lane-keeping)-",
        "highway_env",
        "highway-env",
    ),
    Package(
        r"(mo-|deep-sea-treasure|minecart|resource-gathering|four-room|fruit-tree|breakable-bottles|"
        r"water-reservoir|fishwood)",
        "mo_gymnasium",
        "mo-gymnasium",
    ),
    Package(r"Meta-World/", "metaworld"),
    Package(r"FlappyBird-", "flappy_bird_gymnasium", "flappy-bird-gymnasium"),
    Package(r"myo[A-Z]", "myosuite"),
)
"""Packages whose modules are imported by themselves; other modules are named: MODULE:ID."""


def import_module_of(env_id: str) -> str:
    """Imports the module of MODULE:ID, or that of the package which is known to register ID; returns the ID.

    Raises:
        ValueError: if a module cannot be imported, whatever it raises.
    """
    module, _, name = env_id.rpartition(":")
    if not module and name not in gym.registry:
        package = _package_of(name)
        module = package.module if package is not None and find_spec(package.module) is not None else ""
    if module:
        try:
            import_module(module)
        except FOREIGN as error:
            where = "" if ":" in env_id else f"cannot import {module}: "
            raise EnvFault(f"{env_id}: {where}{error_text(error)}") from error
    return name


def _package_of(name: str) -> Package | None:
    return next((each for each in PACKAGES if re.match(each.ids, name)), None)


def check_known(env_id: str, native_ids: Sequence[str]) -> None:
    """Checks that an id, its module imported, is registered in Gymnasium.

    Raises:
        ValueError: if it is not; the message says what to try.
    """
    module, _, name = env_id.rpartition(":")
    if name in gym.registry:
        return
    known = [*native_ids, *gym.registry]
    package = None if module else _package_of(name)
    close = difflib.get_close_matches(name, known, n=1)
    if package is not None and find_spec(package.module) is None:
        hint = f": {package.module} registers such ids; pip install {package.install or package.module}"
    elif close:
        hint = f"; did you mean {close[0]}?"
    else:
        hint = f": the module {module} does not register it" if module else ""
    example = "" if module else f", if need be of a module: MODULE:{name}"
    raise ValueError(
        f"unknown environment {name!r}{hint} "
        f"(native: {', '.join(native_ids)}; and every id registered in Gymnasium{example})"
    )
