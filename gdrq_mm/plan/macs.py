"""Multiply-accumulates of a real forward: whose they are, and at what bits.

Layers are not asked: every matrix product and convolution that PyTorch runs
is looked at, its operands' values included, so that code which reads a weight
past its layer shows.
"""
from dataclasses import dataclass, field
from typing import Callable, Dict, List, NamedTuple, Optional, Set

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from ..modes import eval_mode
from .grids import has_low_bit_filters, is_evenly_spaced

_PRODUCTS = {  # operator -> places of its two operands
    'mm': (0, 1), 'bmm': (0, 1), 'mv': (0, 1), 'dot': (0, 1),
    'addmm': (1, 2), 'addmm_': (1, 2), 'baddbmm': (1, 2),
    'baddbmm_': (1, 2), 'addbmm': (1, 2), 'addmv': (1, 2),
    'linear': (0, 1), 'convolution': (0, 1), '_convolution': (0, 1),
    '_trilinear': (0, 1),
}


class Product(NamedTuple):
    """One matrix product or convolution.

    Args:
        macs (int): Multiply-accumulates.
        parameter (str, optional): Name of the Parameter that one operand is
            or comes from; '' where it is a constant, None where both come
            from the input.
        owner (str, optional): The innermost watched module it ran in.
        low_bit (bool): Whether both operands lie on a grid.
    """
    macs: int
    parameter: Optional[str]
    owner: Optional[str]
    low_bit: bool


@dataclass
class MacCount:
    """All products of a forward.

    Args:
        products (list[Product]): In the order they ran.
    """
    products: List[Product] = field(default_factory=list)

    @property
    def parametric(self) -> int:
        """MACs of activations with what comes from Parameters."""
        return sum(each.macs for each in self.products if each.parameter)

    @property
    def low_bit(self) -> int:
        """Those of them whose operands both lie on a grid."""
        return sum(each.macs for each in self.products
                   if each.parameter and each.low_bit)

    @property
    def between_activations(self) -> int:
        """MACs of activations with activations, as attention has them."""
        return sum(each.macs for each in self.products
                   if each.parameter is None)

    @property
    def low_bit_between(self) -> int:
        """Those of them whose operands both lie on a grid."""
        return sum(each.macs for each in self.products
                   if each.parameter is None and each.low_bit)

    @property
    def low_bit_share(self) -> float:
        """Share of the parametric MACs that see low-bit operands."""
        return self.low_bit / self.parametric if self.parametric else 0.

    def float_parameters(self) -> Dict[str, int]:
        """MACs that see a float operand, by the name of the Parameter."""
        found: Dict[str, int] = {}
        for each in self.products:
            if each.parameter and not each.low_bit:
                found[each.parameter] = \
                    found.get(each.parameter, 0) + each.macs
        return found


class MacCounter(TorchDispatchMode):
    """Counts what runs inside of it.

    Args:
        model (nn.Module): Tells Parameters and buffers from inputs.
        bits (int, optional): The most that an operand on a grid may have.
            Defaults to None: values are not looked at.
    """

    def __init__(self, model: nn.Module, bits: Optional[int] = None) -> None:
        super().__init__()
        self.count = MacCount()
        self.owners: List[str] = []  # watched modules that run, inner last
        self.bits = bits
        # Tensors that do not depend on the input -> a Parameter's name.
        self._names = WeakIdKeyDictionary()
        self._written: Set[StorageWeakRef] = set()
        # Zeros that no operator wrote to: other values are from a kernel.
        self._zeros: Set[StorageWeakRef] = set()
        self._unfused: List[BaseTorchFunctionMode] = []
        for name, tensor in model.named_buffers():
            self._names[tensor] = ''
        for name, tensor in model.named_parameters():
            self._names[tensor] = name

    def __enter__(self):
        # torch calls one fused operator for attention, which would hide its
        # products, unless something wants to see functions.
        self._unfused.append(BaseTorchFunctionMode())
        self._unfused[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._unfused.pop().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operator = func.overloadpacket.__name__
        if operator not in _PRODUCTS and \
                not operator.startswith('_scaled_dot_product'):
            # Whatever inference mode leaves whole; the mode of functions would
            # call the operator again instead.
            with self, torch._C.DisableTorchFunction():
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        names = [self.name_of(each) for each in tree_flatten((args, kwargs))[0]
                 if isinstance(each, Tensor)]
        out = func(*args, **kwargs)
        self._see(operator, args, out)
        self._trace(operator, names, tree_flatten(out)[0])
        return out

    def name_of(self, tensor: Tensor) -> Optional[str]:
        """Name of the Parameter behind a tensor, '' for a constant, None for
        what depends on the input."""
        name = self._names.get(tensor)
        if name is not None:
            storage = _storage(tensor)
            if storage in self._written or \
                    storage in self._zeros and tensor.any():
                return None
        return name

    def _trace(self, operator: str, names: list, outputs: list) -> None:
        """Note which results do not depend on the input."""
        # What is in empty memory is written past the dispatcher, by kernels;
        # random numbers stand for inputs.
        constant = operator.startswith('lift') or not (
            None in names or operator.startswith('rand')
            or operator in ('empty', 'empty_strided'))
        for out in outputs:
            if not isinstance(out, Tensor):
                continue
            if out in self._names:  # a constant that is written to
                self._zeros.discard(_storage(out))
                if not constant:
                    self._written.add(_storage(out))
            elif operator == 'zeros':
                self._zeros.add(_storage(out))
            if constant:
                self._names[out] = next(filter(None, names), '')

    def _see(self, operator: str, args: tuple, out) -> None:
        if operator.startswith('_scaled_dot_product'):
            query, key, value = args[:3]
            macs = query.numel() * key.shape[-2] + \
                query.shape[:-1].numel() * value.shape[-2:].numel()
            self._add(macs, None, False)
            return
        if operator == 'mkldnn_rnn_layer':
            steps = args[0].shape[:2].numel()
            for weight in args[1:3]:
                self._add(steps * weight.numel(), self.name_of(weight), False)
            return
        if operator not in _PRODUCTS:
            return
        first, second = (args[place] for place in _PRODUCTS[operator])
        macs = _macs(operator, args, first, second, out)
        names = self.name_of(first), self.name_of(second)
        if names == (None, None):
            self._add(macs, None, self._on_grid(first)
                      and self._on_grid(second))
            return
        name = names[1] or names[0] or ''
        weight, x = (second, first) if name == names[1] else (first, second)
        # What a kernel interpolated lies on a grid by chance, as where the
        # offsets of a deformable convolution still are zeros.
        low_bit = bool(name) and self._on_grid(x) and \
            has_low_bit_filters(weight, self.bits)
        self._add(macs, name, low_bit)

    def _on_grid(self, x: Tensor) -> bool:
        return self.bits is not None and _storage(x) not in self._zeros and \
            is_evenly_spaced(x.reshape(1, -1), self.bits)

    def _add(self, macs: int, name: Optional[str], low_bit: bool) -> None:
        owner = self.owners[-1] if self.owners else None
        self.count.products.append(Product(macs, name, owner, low_bit))


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _macs(operator: str, args: tuple, first: Tensor, second: Tensor,
          out: Tensor) -> int:
    if 'convolution' in operator:
        whole = first if args[6] else out  # args[6]: transposed
        return whole.numel() * second[0].numel()
    if operator == '_trilinear':  # the third operand is left aside
        return first[..., 0].numel() * second.numel()
    if operator == 'addbmm':  # sums over the batch
        return first.numel() * second.shape[-1]
    return out.numel() * first.shape[-1]


@torch.no_grad()
def count_macs(model: nn.Module, forward: Callable,
               bits: Optional[int] = 8) -> MacCount:
    """Run ``forward`` once in eval mode and count its MACs.

    Args:
        model (nn.Module): Float or quantized.
        forward (callable): Runs the model on a batch.
        bits (int): The most that a low-bit operand may have. Defaults to 8.

    Returns:
        MacCount: What ran, measured.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        >>> count = count_macs(model, lambda: model(torch.randn(2, 8)))
        >>> count.parametric, count.low_bit_share
        (64, 0.0)
    """
    with eval_mode(model), MacCounter(model, bits) as counter:
        forward()
    return counter.count
