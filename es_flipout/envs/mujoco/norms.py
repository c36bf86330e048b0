"""Sums and norms over the values of each env, rounded as Gymnasium's tasks round them on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary

from es_flipout.envs.mujoco.task import Fields


def numpy_computes(values: Tensor) -> bool:
    """Returns whether NumPy is to compute with values: as in Gymnasium's tasks, on the CPU.

    The last bits of a sum depend on the order of addition. When hooks are compiled, torch stands in: what is
    compiled adds in NumPy's order.
    """
    return values.device.type == "cpu" and not has_torch_function_unary(values)


def squared_norm(values: Tensor) -> Tensor:
    """Returns the sum of each env's squared values (actions, contact forces ...), [N], in their dtype."""
    flat = values.flatten(1)
    if numpy_computes(flat):
        return torch.from_numpy(np.square(flat.numpy()).sum(axis=1))
    return flat.square().sum(dim=1)


def norm(values: Tensor) -> Tensor:
    """Returns the Euclidean norm of each env's values [N, D], [N], in their dtype."""
    if numpy_computes(values):
        # As np.linalg.norm: by BLAS's dot product, whose rounding depends on the processor. And torch's
        # square root is not the nearest number everywhere.
        rows = np.ascontiguousarray(values.numpy())
        return torch.from_numpy(np.sqrt(rows[:, None, :] @ rows[:, :, None]).reshape(-1))
    norms: Tensor = torch.linalg.vector_norm(values, dim=1)
    return norms


def ground_position(fields: Fields) -> dict[str, Tensor]:
    """Returns the info entries about the root on the ground: x, y and the distance from the origin."""
    position = fields["qpos"][:, :2]
    return {
        "x_position": position[:, 0].clone(),
        "y_position": position[:, 1].clone(),
        "distance_from_origin": norm(position),
    }
