"""``F.scaled_dot_product_attention`` as the two products that it is."""
import math
from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(matmul: Callable[[Tensor, Tensor], Tensor], query: Tensor,
              key: Tensor, value: Tensor, attn_mask: Optional[Tensor] = None,
              dropout_p: float = 0., is_causal: bool = False,
              scale: Optional[float] = None, enable_gqa: bool = False
              ) -> Tensor:
    """``F.scaled_dot_product_attention`` as its two products.

    Args:
        matmul (callable): Computes them.
        query (Tensor): Shape ``(..., length, width)``.
        key (Tensor): Shape ``(..., other_length, width)``.
        value (Tensor): Shape ``(..., other_length, value_width)``.
        attn_mask (Tensor, optional): True where a key takes part, or what is
            added to the products.
        dropout_p (float): Share of attention weights that are set to zero.
            Defaults to 0.
        is_causal (bool): Keys up to the place of the query take part.
        scale (float, optional): Defaults to ``width ** -0.5``.
        enable_gqa (bool): Several heads of queries share one of keys.
    """
    if enable_gqa:
        heads = query.shape[-3]
        key, value = (x.repeat_interleave(heads // x.shape[-3], -3)
                      for x in (key, value))
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    # Scaled before: sums of half precision overflow sooner.
    weights = matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        if attn_mask is not None:
            raise ValueError('is_causal=True and attn_mask exclude each other')
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool,
                               device=weights.device).tril()
    if attn_mask is None:
        weights = weights.softmax(-1)
    else:
        if attn_mask.dtype == torch.bool:
            weights = weights.masked_fill(~attn_mask, -math.inf)
        else:
            # Its dtype changes nothing, as in torch.
            weights = (weights + attn_mask).to(weights.dtype)
        # Queries that no key is left for get zeros, as from torch.
        nothing = (weights == -math.inf).all(-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.).softmax(-1)
        weights = weights.masked_fill(nothing, 0.)
    return matmul(F.dropout(weights, dropout_p), value)
