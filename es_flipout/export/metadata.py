"""What an exported policy says about itself, as JSON: inputs, spaces, score, configuration, versions."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

import es_flipout
from es_flipout.export.module import ExportedModule, Input
from es_flipout.run.loaded_policy import LoadedPolicy
from es_flipout.run.run_directory import RunDirectory

KEY = "es_flipout"
"""Where the metadata are: the key of an ONNX model's metadata, or the name of the extra file of a .pt2."""
_PLACES = ("out", "init_from")
"""Fields of a configuration that say where files of the run are, which means nothing elsewhere."""


def metadata(policy: LoadedPolicy, module: ExportedModule) -> dict[str, Any]:
    """Returns the metadata of a policy as plain data, which JSON can hold.

    Args:
        policy: that is exported.
        module: its inputs and outputs.

    Returns:
        `env`, `observation_space`, `action_space`; `observations` and `states`, the inputs in their order,
        each with `name`, `shape` and `dtype` of a row: an observation also has the `path` of keys to it, a
        state the output with its `next` value and its `initial` value; `score` (None if there is none of this
        checkpoint), `generation`, `env_steps`, `config` and `versions`. Bounds that are infinite are None;
        any other number that JSON lacks is "Infinity", "-Infinity" or "NaN".
    """
    config = {name: value for name, value in asdict(policy.config).items() if name not in _PLACES}
    found = {
        "env": policy.env_id,
        "observation_space": described_space(policy.observation_space),
        "action_space": described_space(policy.action_space),
        "observations": [{**_described(each), "path": list(each.path)} for each in module.observations],
        "states": [
            {**_described(each), "next": f"next_{each.name}", "initial": leaf[0].tolist()}
            for each, leaf in zip(module.states, module.initial_state, strict=True)
        ],
        "score": score_of(policy),
        "generation": policy.generation,
        "env_steps": policy.env_steps,
        "config": config,
        "versions": {
            "es_flipout": es_flipout.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "gymnasium", "mujoco", "numpy")},
        },
    }
    return {name: _named(value) for name, value in found.items()}


def score_of(policy: LoadedPolicy) -> dict[str, Any] | None:
    """Returns the score of a checkpoint from the metrics of its run; None if it was not scored.

    Returns:
        `mean`, `std` and number of `episodes` in the official environment.
    """
    run = RunDirectory(policy.checkpoint.absolute().parent.parent)
    for line in run.read_metrics():
        if line["generation"] == policy.generation and line.get("score") is not None:
            episodes = policy.config.evaluation.episodes
            return {"mean": line["score"], "std": line["score_std"], "episodes": episodes}
    return None


def _named(value: Any) -> Any:
    """Returns plain data with the names of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _named(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_named(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _described(each: Input) -> dict[str, Any]:
    dtype = str(each.dtype).removeprefix("torch.")
    return {"name": each.name, "shape": list(each.shape), "dtype": dtype}


def described_space(space: gym.Space[Any]) -> dict[str, Any]:
    """Returns a space as plain data: its `type`, and what else its class is made of.

    Bounds of a Box that are all the same are one number; one that is infinite is None.
    """
    kind: dict[str, Any] = {"type": type(space).__name__}
    if isinstance(space, spaces.Dict):
        return kind | {"spaces": {name: described_space(each) for name, each in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return kind | {"spaces": [described_space(each) for each in space.spaces]}
    kind |= {"shape": list(space.shape or ()), "dtype": str(space.dtype)}
    if isinstance(space, spaces.Box):
        return {**kind, "type": "Box", "low": _bound(space.low), "high": _bound(space.high)}
    if isinstance(space, spaces.Discrete):
        return kind | {"n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return kind | {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
    return kind


def _bound(values: NDArray[Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        return value if math.isfinite(value) else None

    same = values.size > 0 and bool(np.all(values == values.flat[0]))
    return plain(values.flat[0].item() if same else values.tolist())
