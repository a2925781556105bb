"""Multi-head attention with quantized projections.

Paper: "Attention Is All You Need" (Vaswani et al.), Section 3.2; computed as
``torch.nn.functional.multi_head_attention_forward`` does. A filter of the
projection into queries, keys and values is one row of ``in_proj_weight``.
Products of activations with activations: see :mod:`.products`.
"""
import math
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import QuantLayer
from .read import LatentWeight


class QuantMultiheadAttention(QuantLayer, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with quantized projections.

    Query, key and value have a quantizer each; the last projection,
    ``out_proj``, is a quantized linear layer of its own.
    """
    weight_name = 'in_proj_weight'
    input_names = ('input_quantizer', 'key_quantizer', 'value_quantizer')
    in_proj_weight: Any = LatentWeight('in_proj_weight')
    weight = None

    @classmethod
    def why_not(cls, layer: nn.MultiheadAttention) -> str:
        if not layer._qkv_same_embed_dim:
            return 'keys and values have other widths than queries'
        if layer.bias_k is not None or layer.add_zero_attn:
            return 'it adds keys and values of its own'
        return ''

    def forward(self, query: Tensor, key: Tensor, value: Tensor,
                key_padding_mask: Optional[Tensor] = None,
                need_weights: bool = True,
                attn_mask: Optional[Tensor] = None,
                average_attn_weights: bool = True,
                is_causal: bool = False
                ) -> Tuple[Tensor, Optional[Tensor]]:
        if is_causal and attn_mask is None:
            raise RuntimeError('is_causal=True is a hint about attn_mask, as '
                               'in torch: give the mask as well')
        query, key, value = self._quantized_inputs(query, key, value)
        batched = query.dim() == 3
        first = self.batch_first and batched
        if first:
            query, key, value = _transposed(query, key, value)
        elif not batched:
            query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        length, batch, width = query.shape
        q, k, v = (self._split(x) for x in self._project(query, key, value))
        mask = self._mask(attn_mask, key_padding_mask, q, batch)
        if need_weights:
            weights = q * math.sqrt(1. / q.shape[-1])
            weights = torch.bmm(weights, k.transpose(1, 2)) if mask is None \
                else torch.baddbmm(mask, weights, k.transpose(1, 2))
            # What is returned is after dropout, as in torch.
            weights = F.dropout(weights.softmax(-1), self.dropout,
                                self.training)
            out = torch.bmm(weights, v).transpose(0, 1)
        else:
            weights = None
            heads = (batch, self.num_heads)
            q, k, v = (x.unflatten(0, heads) for x in (q, k, v))
            out = F.scaled_dot_product_attention(
                q, k, v,
                mask if mask is None else mask.unsqueeze(0)
                if len(mask) == 1 else mask.unflatten(0, heads),
                self.dropout if self.training else 0.)
            out = out.permute(2, 0, 1, 3)
        out = self.out_proj(out.reshape(length * batch, width))
        out = out.view(length, batch, -1)
        out = out.transpose(0, 1) if first else \
            out if batched else out.squeeze(1)
        if weights is not None:
            weights = weights.unflatten(0, (batch, self.num_heads))
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        return out, weights

    def _quantized_inputs(self, *inputs: Tensor) -> Tuple[Tensor, ...]:
        return tuple(self.quantized_input(x, getattr(self, name))
                     for x, name in zip(inputs, self.input_names))

    def _project(self, query: Tensor, key: Tensor, value: Tensor
                 ) -> Tuple[Tensor, ...]:
        """Queries, keys and values, with as few products as torch."""
        weight, bias = self.quantized_weight(), self.in_proj_bias
        if query is key is value:
            return F.linear(query, weight, bias).chunk(3, -1)
        biases = (None, ) * 3 if bias is None else bias.chunk(3)
        if key is value:
            width = len(weight) // 3
            q = F.linear(query, weight[:width], biases[0])
            both = F.linear(key, weight[width:],
                            None if bias is None else bias[width:])
            return (q, *both.chunk(2, -1))
        return tuple(map(F.linear, (query, key, value), weight.chunk(3),
                         biases))

    def _split(self, x: Tensor) -> Tensor:
        """Heads beside the batch: ``(batch * heads, length, head_dim)``."""
        length, batch, _ = x.shape
        return x.reshape(length, batch * self.num_heads,
                         self.head_dim).transpose(0, 1)

    def _mask(self, mask: Optional[Tensor], padding: Optional[Tensor],
              q: Tensor, batch: int) -> Optional[Tensor]:
        """One float mask to add to the products, of three dimensions."""
        mask, padding = (_as_float(each, q.dtype)
                         for each in (mask, padding))
        if mask is not None and mask.dim() == 2:
            mask = mask.unsqueeze(0)
        if padding is None:
            return mask
        padding = padding.view(batch, 1, 1, -1).expand(
            -1, self.num_heads, -1, -1).reshape(len(q), 1, -1)
        return padding if mask is None else mask + padding


def _transposed(query: Tensor, key: Tensor, value: Tensor) -> tuple:
    """Length first; what was one tensor stays one."""
    new_query = query.transpose(0, 1)
    new_key = new_query if key is query else key.transpose(0, 1)
    return new_query, new_key, new_key if value is key else \
        value.transpose(0, 1)


def _as_float(mask: Optional[Tensor], dtype: torch.dtype
              ) -> Optional[Tensor]:
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(
        mask, float('-inf'))
