"""Arrays of any library as torch tensors, and tensors as arrays of that library.

They change hands by DLPack, which shares memory, on the CPU and on GPUs alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from es_flipout.error_text import FOREIGN


def shared_tensor(value: Any) -> Tensor | None:
    """Returns an array as a tensor in the same memory.

    None for a NumPy array, for what is no array, and for one whose dtype or device torch lacks.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "__dlpack__"):
        return None
    try:
        tensor: Tensor = torch.from_dlpack(value)  # type: ignore[attr-defined] # documented, not exported
        return tensor
    except FOREIGN:
        return None


def converter_to(sample: Any) -> Callable[[Tensor], Any]:
    """Returns what turns tensors into arrays like a sample: tensors or JAX arrays on its device, or NumPy.

    The tensors must not be written to afterwards.
    """
    shared = shared_tensor(sample)
    if shared is None or not (isinstance(sample, Tensor) or hasattr(sample, "__array_namespace__")):
        return _to_numpy
    device = shared.device
    if isinstance(sample, Tensor):
        return lambda tensor: tensor.to(device)
    from_dlpack = sample.__array_namespace__().from_dlpack
    return lambda tensor: from_dlpack(tensor.to(device).contiguous())


def _to_numpy(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
