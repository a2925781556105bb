"""Products of activations with activations, with both operands quantized.

Attention multiplies queries with keys and attention weights with values; no
layer stands for these products. So the forward of the module that computes
them runs under a mode of torch functions, which puts every operand on a grid:
the module, its class and its code stay as they are. What a child of it
multiplies is the child's own.
"""
import functools
import math
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..modes import is_traced_by_dynamo
from .output import quantize_activation
from .read import ReadWeight

NAME = 'product_quantizers'  # the child of a module with such products

_CALL = nn.Module._call_impl.__code__
_ATTENTION = F.scaled_dot_product_attention
_OPERANDS: Dict[Callable, tuple] = {  # function -> its operands, by place
    torch.matmul: ('input', 'other'), Tensor.matmul: ('self', 'other'),
    Tensor.__matmul__: ('self', 'other'),
    torch.bmm: ('input', 'mat2'), Tensor.bmm: ('self', 'mat2'),
    torch.mm: ('input', 'mat2'), Tensor.mm: ('self', 'mat2'),
    torch.baddbmm: ('', 'batch1', 'batch2'),
    Tensor.baddbmm: ('', 'batch1', 'batch2'),
    Tensor.baddbmm_: ('', 'batch1', 'batch2'),
}
PER_CALL = {  # name of a function -> products of one call
    **{function.__name__: 1 for function in (*_OPERANDS, torch.einsum)},
    _ATTENTION.__name__: 2}


class ProductOperands(nn.Module):
    """What puts the operands of a module's products on their grids.

    Products are told apart by their order in one forward; those in a loop
    begin again with the first.
    """

    @property
    def number(self) -> int:
        """Products that have grids of their own."""
        raise NotImplementedError

    def leaves(self, product: int, *operands: Tensor) -> bool:
        """Whether a product stays as it is: one with a weight.

        Args:
            product (int): Which of the forward it is, from 0 on.
            *operands (Tensor): What is multiplied.
        """
        raise NotImplementedError

    def forward(self, place: int, x: Tensor) -> Tensor:
        """An operand on its grid.

        Args:
            place (int): Among the operands: 0 and 1 are those of the first
                product.
            x (Tensor): The operand.
        """
        raise NotImplementedError


class ProductQuantizers(ProductOperands, nn.ModuleList):
    """Activation quantizers of the products of a module.

    Args:
        state (QuantizationState): State of the model.
        quantizers (list[nn.Module]): Two a product.

    Attributes:
        called (bool): Whether a product was seen.
        most (int): How many a forward had at most.
        seen (set[int]): Those with grids of their own that were seen.
        of_weights (set[int]): Those of them with a Parameter as an operand,
            which are left to the quantizers of weights.
    """

    def __init__(self, state: nn.Module, quantizers: List[nn.Module]) -> None:
        nn.ModuleList.__init__(self, quantizers)
        self._shared = (state, )  # in a tuple: it is no submodule
        self.called = False
        self.most = 0
        self.seen: Set[int] = set()
        self.of_weights: Set[int] = set()

    @property
    def state(self) -> nn.Module:
        """The :class:`QuantizationState` of the model."""
        return self._shared[0]

    @property
    def number(self) -> int:
        return len(self) // 2

    def quantizers(self) -> Iterator[tuple]:
        """All quantizers in it, by their name."""
        return self.activation_quantizers()

    def activation_quantizers(self) -> Iterator[tuple]:
        return self.named_children()

    def quantizer_state(self) -> dict:
        """State-dict entries that the float model does not have."""
        return dict(self.state_dict())

    def forget(self) -> None:
        """Buffers were written from outside: look at them again."""
        for quantizer in self:
            quantizer.forget()

    def leaves(self, product: int, *operands: Tensor) -> bool:
        self.called, self.most = True, max(self.most, product + 1)
        product %= self.number
        self.seen.add(product)
        if any(map(_is_weight, operands)):
            self.of_weights.add(product)
            return True
        return not all(each.is_floating_point() for each in operands)

    def forward(self, place: int, x: Tensor) -> Tensor:
        return quantize_activation(self.state, self[place], x)


def _is_weight(x: Tensor) -> bool:
    # Or a view of one.
    return isinstance(x, (nn.Parameter, ReadWeight)) or isinstance(
        x._base, nn.Parameter)


class _Rounding(TorchFunctionMode):
    """Rounds the operands of products in one forward of a module.

    Args:
        operands (ProductOperands): What does so.
    """

    def __init__(self, operands: ProductOperands) -> None:
        super().__init__()
        self.operands = operands
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        places = _OPERANDS.get(func)
        if places is None and func not in (_ATTENTION, torch.einsum) \
                or not self._is_own(sys._getframe(1)):
            return func(*args, **kwargs)
        if func is _ATTENTION:
            return attention(self._matmul, *args, **kwargs)
        if func is torch.einsum:
            equation, *operands = args
            if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
                operands = list(operands[0])
            if len(operands) == 2:
                operands = self._rounded(*operands)
            return func(equation, *operands, **kwargs)
        args, kwargs = list(args), dict(kwargs)
        found = [(args, place) if place < len(args) else (kwargs, name)
                 for place, name in enumerate(places) if name]
        for (where, key), value in zip(found, self._rounded(*(
                where[key] for where, key in found))):
            where[key] = value
        return func(*args, **kwargs)

    def _is_own(self, frame) -> bool:
        """Whether the module's own code multiplies, no child of it."""
        while frame.f_code is not _CALL:
            if frame.f_code is _run.__code__:
                return frame.f_locals['rounding'] is self
            frame = frame.f_back
        return False

    def _rounded(self, first: Tensor, second: Tensor) -> list:
        number, self.count = self.count, self.count + 1
        if self.operands.leaves(number, first, second):
            return [first, second]
        place = 2 * (number % self.operands.number)
        return [self.operands(place, first),
                self.operands(place + 1, second)]

    def _matmul(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.matmul(*self._rounded(first, second))


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
            weights = weights + attn_mask
        # Queries that no key is left for get zeros, as from torch.
        nothing = (weights == -math.inf).all(-1, keepdim=True)
        weights = weights.masked_fill(nothing, 0.).softmax(-1)
        weights = weights.masked_fill(nothing, 0.)
    return matmul(F.dropout(weights, dropout_p), value)


def attach_products(module: nn.Module, operands: ProductOperands) -> None:
    """Let ``operands`` round what ``module`` multiplies from now on.

    Args:
        module (nn.Module): With products of activations.
        operands (ProductOperands): Becomes a child of it, and may be replaced
            as such.
    """
    module.add_module(NAME, operands)
    # A partial of a function, as copies and pickles of the module need it; of
    # the forward, since code may call that past hooks.
    module.forward = functools.partial(
        _forward, module, vars(module).get('forward'))


def _forward(module: nn.Module, forward: Optional[Callable], *args, **kwargs
             ) -> Any:
    if is_traced_by_dynamo():  # it knows no frames: the graph ends here
        return torch._dynamo.disable(_run)(module, forward, *args, **kwargs)
    return _run(module, forward, *args, **kwargs)


def _run(module: nn.Module, forward: Optional[Callable], *args, **kwargs
         ) -> Any:
    rounding = _Rounding(getattr(module, NAME))  # _is_own knows it
    with rounding:
        if forward is None:
            return type(module).forward(module, *args, **kwargs)
        return forward(*args, **kwargs)
