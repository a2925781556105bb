"""Weights that code reads past their layer: quantized on read.

Some models call ``F.linear(x, self.qkv.weight, bias)`` instead of the layer,
some compute with its weight. Inside a forward they get the quantized weight;
everybody else (optimizers, initialization, checkpoints) gets the Parameter.
"""
import sys
from types import FrameType
from typing import Any, Callable, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import checkpoint
from torch.utils._pytree import tree_flatten, tree_map

from ..modes import is_compiling, is_traced_by_dynamo

_CALL = nn.Module._call_impl.__code__
# What multiplies an input with a weight: that input is quantized, too.
_OPERATIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d,
               F.conv_transpose2d, F.conv_transpose3d)
# What gives the same values, to read them or to write to them.
_ALIASES = Tensor.detach, Tensor.data.__get__
# What is about the Parameter, whose values stay.
_FLAGS = (Tensor.requires_grad_,
          Tensor.requires_grad.__set__)
# What asks for its shape only, as most attributes do, and what for its dtype:
# that of codes, where the layer is merged.
_SHAPES = ('__get__', '__len__', 'dim', 'ndimension', 'size', 'stride',
           'numel', 'nelement')
_DTYPES = ('is_floating_point', 'type_as', 'new_zeros', 'new_ones',
           'new_empty', 'new_full', 'new_tensor', 'zeros_like', 'ones_like',
           'empty_like', 'full_like', 'rand_like', 'randn_like')
# Storages of quantized weights that code has read and still holds.
_READ: Dict[StorageWeakRef, None] = {}
MOVED = (
    'the weight Parameter of {} is quantized and cannot be replaced. What '
    'does that: fuse_conv_bn (fuse the float model before), tying weights '
    '(tie them before), load_state_dict(assign=True) (leave it out), '
    'nn.DataParallel and FSDP (use DistributedDataParallel), '
    'torch.nn.utils.prune and weight_norm (before quantize_). New values go '
    'in by load_state_dict of the model or of this layer (strict=False for '
    'the weight alone), which takes new ranges for them.')


class ReadWeight(Tensor):
    """A quantized weight that knows its layer.

    As the weight of ``F.linear`` or a convolution it lets the layer quantize
    the input as well; to all else it is a plain tensor.

    Attributes:
        layer (QuantLayer): Whose weight it is.
        values (Tensor): The plain tensor.
    """
    layer: Any
    values: Tensor

    @classmethod
    def of(cls, layer: nn.Module, values: Tensor) -> 'ReadWeight':
        if is_compiling():
            read = Tensor._make_wrapper_subclass(
                TracedReadWeight, values.shape, dtype=values.dtype,
                device=values.device)
        else:
            read = values.as_subclass(cls)
            for each in list(_READ):  # threads may share a model
                if each.expired():
                    _READ.pop(each, None)
            _READ[StorageWeakRef(values.untyped_storage())] = None
        read.layer, read.values = layer, values
        return read

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        read = [each for each in tree_flatten((args, kwargs))[0]
                if isinstance(each, ReadWeight)]
        layer = read[0].layer if args and read and read[0] is args[0] else None
        if layer is not None and func in _FLAGS:
            func(layer.latent_weight, *args[1:], **kwargs)
            return read[0]
        if layer is not None and _writes(name) or any(
                each is kwargs.get('out') for each in read):
            raise RuntimeError(
                'code in the forward of the model writes to the weight of '
                f'{read[0].layer.state.name_of(read[0].layer)} ({name}); it '
                'is quantized, and what is written to the quantized values '
                'is lost: leave the layer float with a rule, '
                'dict(match=..., skip=True), or write to the Parameter '
                'outside of the forward')
        if issubclass(cls, OwnWeight):
            return cls.passed_on(func, args, kwargs, layer)
        kind = 'operation' if func in _OPERATIONS else 'dtype' \
            if name in _DTYPES or func == Tensor.dtype.__get__ else 'value'
        if kind == 'dtype' or name not in _SHAPES and func not in _ALIASES:
            for each in read:
                each.layer.note_read(kind)
        if func in _OPERATIONS:
            args, kwargs = _quantize_input(list(args), dict(kwargs))
        result = _of_values(func, args, kwargs)
        return cls.of(layer, result) if layer is not None and \
            func in _ALIASES else result


class OwnWeight(ReadWeight):
    """A quantized weight in the forward of its own layer: a plain tensor to
    all that does not write to it."""

    @classmethod
    def of(cls, layer: nn.Module, values: Tensor) -> 'ReadWeight':
        read = values.as_subclass(cls)
        read.layer, read.values = layer, values
        return read

    @classmethod
    def passed_on(cls, func: Callable, args: Any, kwargs: Any,
                  layer: Optional[nn.Module]) -> Any:
        """The result of a function that reads it."""
        result = _of_values(func, args, kwargs)
        return cls.of(layer, result) if layer is not None and \
            func in _ALIASES else result


def is_read_weight(x: Tensor) -> bool:
    """Whether ``x`` is a weight that was read, or a view of one.

    Args:
        x (Tensor): Any tensor.
    """
    return isinstance(x, ReadWeight) or bool(_READ) and StorageWeakRef(
        x.untyped_storage()) in _READ


class TracedReadWeight(ReadWeight):
    """One for ``torch.export``, whose tensors are a subclass themselves."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _of_values(func, args, kwargs or {})


def _writes(name: str) -> bool:
    return name in ('__setitem__', '__set__') or \
        name.endswith('_') and not name.endswith('__')


def _of_values(func: Callable, args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map(
        lambda each: each.values if isinstance(each, ReadWeight) else each,
        (args, kwargs))
    return func(*args, **kwargs)


def _quantize_input(args: list, kwargs: dict) -> tuple:
    weight = args[1] if len(args) > 1 else kwargs['weight']
    if isinstance(weight, ReadWeight):
        if args:
            args[0] = weight.layer.quantized_input(args[0])
        else:
            kwargs['input'] = weight.layer.quantized_input(kwargs['input'])
    return args, kwargs


def _read_uncompiled(layer: nn.Module) -> ReadWeight:
    """Ends the compiled graph: dynamo would take it for a plain tensor."""
    return ReadWeight.of(layer, layer.quantized_weight())


class LatentWeight:
    """Attribute of quantized layers in the place of their weight.

    Args:
        name (str): Name of the Parameter.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, layer: Optional[nn.Module], owner=None) -> Any:
        if layer is None:
            return self
        weight = layer._parameters.get(self.name)
        if weight is None:
            raise RuntimeError(MOVED.format(layer.state.name_of(layer)))
        if not any(True for _ in layer.quantizers()):
            return weight
        if is_traced_by_dynamo():  # it knows no frames
            return layer.quantized_weight() if layer.in_own_forward \
                else torch._dynamo.disable(_read_uncompiled)(layer)
        frame = sys._getframe(1)
        reader = _reader(frame)
        if reader is None and not _is_repeated(frame):
            return weight
        quantized = layer.quantized_weight()
        # Its own forward, or what that calls.
        if layer in (reader, frame.f_locals.get('self')):
            return quantized if is_compiling() or torch.jit.is_tracing() \
                else OwnWeight.of(layer, quantized)
        return ReadWeight.of(layer, quantized)


def _reader(frame: Optional[FrameType]) -> Optional[nn.Module]:
    """The module whose forward is the nearest among the callers: by a call of
    the module, or of the method itself, as mmseg's heads do in ``predict``."""
    while frame is not None:
        code = frame.f_code
        module = frame.f_locals['self'] if code is _CALL else \
            _first_argument(frame) if code.co_name == 'forward' else None
        if isinstance(module, nn.Module):
            return module
        frame = frame.f_back
    return None


def _is_repeated(frame: Optional[FrameType]) -> bool:
    """Whether a backward pass repeats a part of a forward (activation
    checkpointing), without the module that called it."""
    while torch._C._current_graph_task_id() != -1 and frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def _first_argument(frame: FrameType) -> Any:
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if names else None
