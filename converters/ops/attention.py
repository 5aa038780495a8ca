"""Scaled dot-product attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from converters.ops._values import beside, widened
from converters.ops.constant import torch_type
from converters.registry import op


@op("Attention", since=23)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    past_key: torch.Tensor | None = None,
    past_value: torch.Tensor | None = None,
    nonpad_kv_seqlen: torch.Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    n_outputs: int = 1,
) -> tuple[torch.Tensor, ...]:
    """softmax(scale * Q @ K^T + bias) @ V for each head; a row that may see nothing gives 0.

    Q, K and V are (N, heads, length, size), or (N, length, heads * size) with the numbers of heads
    as attributes. Half precision is computed in float32.

    Returns:
        Y, the keys and the values with the past ones before them, and the scores: raw, after
        `softcap`, after the bias or after the softmax, as `qk_matmul_output_mode` says.
    """
    flat = q.ndim == 3
    if flat:
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    offset = torch.zeros(1, dtype=torch.int64)
    if past_key is not None and past_value is not None:
        if is_causal and q.shape[2] != k.shape[2]:
            # The specification counts from the end of the past keys, ONNX Runtime from that of all.
            raise NotImplementedError("causal, with past keys and other new keys than queries")
        offset = offset + past_key.shape[2]
        k, v = torch.cat((beside(past_key, k), k), 2), torch.cat((beside(past_value, v), v), 2)
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen.reshape(-1).cpu() - q.shape[2]
    seen = _visible(q.shape[2], k.shape[2], offset, is_causal, left_window_size, right_window_size)
    if nonpad_kv_seqlen is not None:
        places = torch.arange(k.shape[2])
        seen = seen & (places < nonpad_kv_seqlen.cpu().reshape(-1, 1, 1, 1))
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} heads of queries for {k.shape[1]} of keys")
    groups = q.shape[1] // k.shape[1]
    key, value = (widened(t).repeat_interleave(groups, dim=1) for t in (k, v))
    factor = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    if n_outputs == 1 and attn_mask is None and softcap == 0 and bool(seen.all()):
        # What classifiers have: torch's own kernel does not hold the scores of all pairs at once.
        y = F.scaled_dot_product_attention(widened(q), key, value, scale=factor).to(q.dtype)
        return (y.transpose(1, 2).flatten(2) if flat else y,)
    bias = _bias(beside(seen, q), attn_mask, widened(q))
    raw = torch.matmul(widened(q) * factor, key.transpose(-1, -2))
    capped = softcap * torch.tanh(raw / softcap) if softcap > 0 else raw
    scores = capped + bias
    weights = _softmax(scores, bias, softmax_precision)
    y = torch.matmul(weights, value).to(q.dtype)
    shown = (raw, capped, scores, weights)[qk_matmul_output_mode]
    y = y.transpose(1, 2).flatten(2) if flat else y
    return y, k, v, shown.to(q.dtype)


def _heads(x: torch.Tensor, count: int | None) -> torch.Tensor:
    """(N, length, heads * size) as (N, heads, length, size)."""
    if not count or x.shape[2] % count:
        raise ValueError(f"{x.shape[2]} numbers can't be split into {count} heads")
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


def _visible(
    queries: int, keys: int, offset: torch.Tensor, causal: int, left: int, right: int
) -> torch.Tensor:
    """Which keys each query may see, (1 or N, 1, queries, keys); -1 is a window without an end.

    Query i stands at place i + offset.
    """
    place = torch.arange(queries).reshape(-1, 1) + offset.reshape(-1, 1, 1, 1)
    ahead = torch.arange(keys) - place
    seen = torch.ones_like(ahead, dtype=torch.bool)
    if causal:
        seen = seen & (ahead <= 0)
    if left >= 0:
        seen = seen & (ahead >= -left)
    return seen & (ahead <= right) if right >= 0 else seen


def _bias(seen: torch.Tensor, mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """What is added to the scores: the mask, and minus infinity where a key may not be seen.

    A mask may end before the keys do; what is beyond it is not seen.
    """
    total = torch.zeros((), dtype=like.dtype, device=like.device)
    if mask is not None:
        mask, keys = beside(mask, like), seen.shape[-1]
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -torch.inf)
        total = widened(mask).to(like.dtype)
        total = F.pad(total, (0, keys - mask.shape[-1]), value=-torch.inf)
    return torch.where(seen, total, torch.full((), -torch.inf).to(total))


def _softmax(scores: torch.Tensor, bias: torch.Tensor, precision: int | None) -> torch.Tensor:
    """Softmax over the keys, 0 in rows whose bias shuts every key out."""
    blind = torch.isneginf(bias).all(dim=-1, keepdim=True)
    kept = torch.where(blind, torch.zeros_like(scores), scores)
    wide = kept if precision is None else kept.to(_at_least(precision, kept))
    weights = torch.softmax(wide, dim=-1).to(scores.dtype)
    return torch.where(blind, torch.zeros_like(weights), weights)


def _at_least(data_type: int, like: torch.Tensor) -> torch.dtype:
    """The type in which a softmax is computed: never a coarser one than the scores have."""
    return torch.promote_types(torch_type(data_type), like.dtype)
