"""Model fields that each env of `mujoco_warp` has for itself.

A field of its `Model` whose first dimension is "*" may have a row per env; by default all envs share one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from torch import Tensor

from es_flipout.envs.engines.warp_setup import import_warp

SET_BY_MUJOCO = frozenset(getattr(mujoco.MjModel, "_setconst_outputs", ()))
"""Constants that MuJoCo derives from other fields (mj_setConst)."""
FOR_SLEEP = "dof_length"
"""The one that mujoco_warp shares between all envs, but reads only if bodies may be put to sleep."""


def varied_fields(
    warp_model: Any, model: mujoco.MjModel, names: Sequence[str], num_envs: int
) -> dict[str, Tensor]:
    """Gives a `mujoco_warp.Model` a row per env of some fields; returns live views, float32 [N, ...].

    It must be called before anything is recorded. What mujoco_warp does not have, or does not use, is left
    out, if MuJoCo derives it from other fields.

    Raises:
        ValueError: if mujoco_warp cannot vary one of the others.
    """
    wp, _ = import_warp()
    dimensions = {
        each.name: getattr(each.type, "shape", None) or () for each in dataclasses.fields(warp_model)
    }
    views = {}
    for name in names:
        if dimensions.get(name, ())[:1] != ("*",):
            if name in SET_BY_MUJOCO and name not in dimensions:
                continue
            if name == FOR_SLEEP and not model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_SLEEP:
                continue
            can = sorted(each for each, shape in dimensions.items() if shape[:1] == ("*",))
            close = [each for each in can if each.partition("_")[0] == name.partition("_")[0]]
            raise ValueError(
                f"engine 'warp' cannot vary {name!r} from env to env; of that kind it can vary "
                f"{', '.join(close) or 'nothing'}"
            )
        shared = getattr(warp_model, name)
        rows = np.repeat(shared.numpy()[:1], num_envs, axis=0)
        own = wp.array(rows, dtype=shared.dtype, device=shared.device)
        setattr(warp_model, name, own)
        view: Tensor = wp.to_torch(own)
        views[name] = view.view(num_envs, *getattr(model, name).shape)
    return views
