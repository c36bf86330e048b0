"""Multi-head attention: its projections are linear maps; the attention itself has no weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from es_flipout.perturbations.perturbed_parameter import (
    PerturbedParameter,
    perturbed,
    require_vmap,
    unsupported,
)
from es_flipout.perturbations.registry import rule


def _pieces(parameter: Tensor | None) -> tuple[Tensor | None, ...]:
    """Returns the parts of a stacked projection for queries, keys and values."""
    return (None, None, None) if parameter is None else tuple(parameter.chunk(3))


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Returns a mask to add to the scores: minus infinity where a bool mask forbids attention."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


def _appended(sequence: Tensor, entry: Tensor) -> Tensor:
    """Returns a sequence [S, B, E] followed by an entry [1, 1, E], zeros or a parameter."""
    values = entry.written_out() if isinstance(entry, PerturbedParameter) else entry
    return torch.cat([sequence, values.expand(1, *sequence.shape[1:])])


@rule(F.multi_head_attention_forward)
def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Runs attention with perturbed projections; the arguments are those of torch's function.

    `is_causal` is only a hint that `attn_mask` is causal: torch passes the mask whenever it is set.
    """
    weights = [in_proj_weight, in_proj_bias, bias_k, bias_v, out_proj_weight, out_proj_bias]
    weights += [q_proj_weight, k_proj_weight, v_proj_weight]
    require_vmap(F.multi_head_attention_forward, weights)
    if static_k is not None or static_v is not None:
        raise unsupported(F.multi_head_attention_forward, perturbed(weights))
    is_batched = query.ndim == 3
    if not is_batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)

    projections = _pieces(in_proj_weight)
    if use_separate_proj_weight:
        projections = (q_proj_weight, k_proj_weight, v_proj_weight)
    q, k, v = (
        F.linear(x, weight, bias)  # type: ignore[arg-type]
        for x, weight, bias in zip((query, key, value), projections, _pieces(in_proj_bias), strict=True)
    )
    mask, padding = _additive(attn_mask, q), _additive(key_padding_mask, q)
    entries: list[tuple[Tensor, Tensor]] = []
    if bias_k is not None and bias_v is not None:
        entries.append((bias_k, bias_v))
    if add_zero_attn:
        entries.append((k.new_zeros(1, 1, k.shape[2]),) * 2)
    for more_k, more_v in entries:
        k, v = _appended(k, more_k), _appended(v, more_v)
        mask = None if mask is None else F.pad(mask, (0, 1))
        padding = None if padding is None else F.pad(padding, (0, 1))

    # [L, B, E] to [B, heads, L, E / heads]
    q, k, v = (torch.unflatten(x, 2, (num_heads, -1)).permute(1, 2, 0, 3) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + (torch.unflatten(mask, 0, (-1, num_heads)) if mask.ndim == 3 else mask)
    if padding is not None:
        scores = scores + padding[:, None, None, :]
    attention = scores.softmax(dim=-1)
    if dropout_p and training:
        attention = F.dropout(attention, dropout_p)
    outputs = F.linear((attention @ v).permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if average_attn_weights:
        attention = attention.mean(dim=1)
    if not is_batched:
        outputs, attention = outputs.squeeze(1), attention.squeeze(0)
    return outputs, attention if need_weights else None
