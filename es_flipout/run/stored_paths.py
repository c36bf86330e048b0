"""A stored run works from any folder: paths that were relative when it was made are stored absolute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from es_flipout.run.config import Config

RELATIVE_STARTS = ("./", "../", "~/")
"""What a relative path begins with. Other text, such as hopper.xml, may be a name that Gymnasium knows."""


def with_absolute_paths(config: Config) -> Config:
    """Returns a configuration whose relative paths are absolute.

    Those are `init_from`, and text among keyword arguments, however deep, that begins like a relative path
    and names a file or a folder. (What does not exist from here is relative to another folder.)
    """
    env, policy, optimizer, logging = config.env, config.policy, config.optimizer, config.logging
    return replace(
        config,
        env=replace(env, kwargs=_absolute(env.kwargs), engine_kwargs=_absolute(env.engine_kwargs)),
        policy=replace(policy, kwargs=_absolute(policy.kwargs)),
        optimizer=replace(optimizer, kwargs=_absolute(optimizer.kwargs)),
        logging=replace(logging, reporters=_absolute(logging.reporters)),
        init_from=None if config.init_from is None else str(Path(config.init_from).expanduser().absolute()),
    )


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_absolute, value))
    if isinstance(value, str) and value.startswith(RELATIVE_STARTS):
        path = Path(value).expanduser().absolute()
        return str(path) if path.exists() else value
    return value
