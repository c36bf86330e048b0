"""Every torch operation that can be written for one env, by torch's name."""

from __future__ import annotations

from es_flipout.envs.fused import arithmetic, rearranging, reducing  # noqa: F401 - which register their rules
from es_flipout.envs.fused.rules import OPERATIONS, aten

__all__ = ["OPERATIONS", "ROUNDED_ELSEWHERE"]

ROUNDED_ELSEWHERE = {
    aten.norm,
    aten.linalg_vector_norm,
    aten.exp,
    aten.expm1,
    aten.log,
    aten.log1p,
    aten.sin,
    aten.cos,
    aten.tan,
    aten.asin,
    aten.acos,
    aten.atan,
    aten.atan2,
    aten.hypot,
    aten.sinh,
    aten.cosh,
    aten.tanh,
    aten.sigmoid,
    aten.rsqrt,
    aten.mean,
    aten.prod,
    aten.bmm,
    aten.mm,
    aten.mv,
}
"""Operations whose last bit may be another here than in torch or NumPy; powers beyond squares are, too."""
