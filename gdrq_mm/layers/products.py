"""Products of activations with activations, with both operands quantized.

Attention multiplies queries with keys and attention weights with values; no
layer stands for these products. So the forward of the module that computes
them runs under a mode of torch functions, which puts every operand on a grid:
the module, its class and its code stay as they are. What a child of it
multiplies is the child's own.
"""
import functools
import sys
from typing import Any, Callable, Dict, Optional, Set

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from ..modes import is_traced_by_dynamo
from .product_operands import PRODUCT_QUANTIZERS, ProductOperands
from .scaled_attention import attention

_CALL = nn.Module._call_impl.__code__
# Their code multiplies in an order that is known.
_KNOWN = 'torch', __name__.partition('.')[0]
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


class _Rounding(TorchFunctionMode):
    """Rounds the operands of products in one forward of a module.

    Args:
        operands (ProductOperands): What does so.

    Attributes:
        reached (set[int]): Products whose operands were rounded.
    """

    def __init__(self, operands: ProductOperands) -> None:
        super().__init__()
        self.operands = operands
        self.learns = torch.is_grad_enabled()
        self.count = 0
        self.reached: Set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        places = _OPERANDS.get(func)
        if places is None and func not in (_ATTENTION, torch.einsum):
            return func(*args, **kwargs)
        site = self._site(sys._getframe(1))
        if site is None:
            return func(*args, **kwargs)
        if func is _ATTENTION:
            sites = iter([site and (*site, operand)
                          for operand in ('keys', 'values')])
            return attention(lambda *operands: torch.matmul(*self._rounded(
                next(sites), *operands)), *args, **kwargs)
        if func is torch.einsum:
            equation, *operands = args
            if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
                operands = list(operands[0])
            if len(operands) == 2:
                operands = self._rounded(site, *operands)
            return func(equation, *operands, **kwargs)
        args, kwargs = list(args), dict(kwargs)
        found = [(args, place) if place < len(args) else (kwargs, name)
                 for place, name in enumerate(places) if name]
        for (where, key), value in zip(found, self._rounded(site, *(
                where[key] for where, key in found))):
            where[key] = value
        return func(*args, **kwargs)

    def _site(self, frame) -> Optional[tuple]:
        """Where the module's own code multiplies: the way there from its
        forward, the same for all calls of a loop. Empty where the order is
        known, None in a child of it."""
        way, repeats = [], False
        while frame.f_code is not _CALL:
            if frame.f_code is _run.__code__:
                if frame.f_locals['rounding'] is not self:
                    return None
                if repeats and self.learns:
                    self._refuse_checkpoint()
                return tuple(way)
            name = frame.f_globals.get('__name__', '')
            repeats = repeats or name == checkpoint.__name__
            if name.partition('.')[0] not in _KNOWN:
                way.append((frame.f_code, frame.f_lasti))
            frame = frame.f_back
        return None

    def _refuse_checkpoint(self) -> None:
        name = self.operands.name
        raise RuntimeError(
            f'{name or "the model"} checkpoints a part of its own forward '
            '(torch.utils.checkpoint) that multiplies activations; the '
            'backward pass would repeat that part without their quantizers, '
            'for wrong gradients: checkpoint the whole module, or leave its '
            f'products float with dict(match={name or "*"!r}, '
            'products=dict(bits=None)) in the rules')

    def _rounded(self, site: tuple, first: Tensor, second: Tensor) -> list:
        product = self.operands.product_at(self.count, site)
        self.count += 1
        if self.operands.leaves(product, first, second):
            return [first, second]
        self.reached.add(product)
        return [self.operands(2 * product, first),
                self.operands(2 * product + 1, second)]


def attach_products(module: nn.Module, operands: ProductOperands) -> None:
    """Let ``operands`` round what ``module`` multiplies from now on.

    Args:
        module (nn.Module): With products of activations.
        operands (ProductOperands): Becomes a child of it, and may be replaced
            as such.
    """
    module.add_module(PRODUCT_QUANTIZERS, operands)
    # A partial of a function, as copies and pickles of the module need it; of
    # the forward, since code may call that past hooks.
    module.forward = functools.partial(
        _forward, module, vars(module).get('forward'))


def detach_products(module: nn.Module) -> None:
    """Take the forward of :func:`attach_products` from a shallow copy.

    Args:
        module (nn.Module): The copy. A forward of its own that the original
            had before is its own again.
    """
    original, forward = vars(module).pop('forward').args
    if forward is not None:
        if getattr(forward, '__self__', None) is original:
            forward = forward.__func__.__get__(module)
        module.forward = forward


def _forward(module: nn.Module, forward: Optional[Callable], *args, **kwargs
             ) -> Any:
    if is_traced_by_dynamo():  # it knows no frames: the graph ends here
        return torch._dynamo.disable(_run)(module, forward, *args, **kwargs)
    return _run(module, forward, *args, **kwargs)


def _run(module: nn.Module, forward: Optional[Callable], *args, **kwargs
         ) -> Any:
    operands = getattr(module, PRODUCT_QUANTIZERS)
    rounding = _Rounding(operands)  # _site knows it
    with rounding:
        result = type(module).forward(module, *args, **kwargs) \
            if forward is None else forward(*args, **kwargs)
    return operands.kept_in_graph(result, rounding.reached)
