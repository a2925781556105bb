"""What entries of a checkpoint must be like, before anything is loaded."""
import math
import sys
from typing import Callable, Dict, Optional, Set, Tuple

import torch
from torch import Tensor, nn

from ..quantizers.start import start_of
from .errors import CheckpointError
from .integrity import digest
from .keys import PACKED, is_stored
from .packing import check_codes, packed_shapes

EXTRA_STATE = nn.modules.module._EXTRA_STATE_KEY_SUFFIX  # may be no tensor
_LOAD = nn.Module.load_state_dict.__code__
MAX_UPDATES = 2**40  # of counters: no training has that many steps


def check_kinds(model: nn.Module, entries: dict) -> None:
    """Every entry that the model has must be a tensor of its kind.

    Args:
        model (nn.Module): The converted model, or a part of it.
        entries (dict): Entries of the checkpoint, by the model's names.

    Raises:
        CheckpointError: One is not.
    """
    for key, own in model.state_dict().items():
        value = entries.get(key)
        if not isinstance(own, Tensor) or key not in entries:
            continue
        if not isinstance(value, Tensor) or value.layout != own.layout \
                or value.is_quantized or _kind(value) != _kind(own) \
                and not (key.endswith('num_batches_tracked')
                         and value.is_floating_point()):  # mmdet averages it
            raise CheckpointError(
                f'{key} is {_described(value)}, the model has '
                f'{_described(own)}: the checkpoint is of another model, or '
                'damaged. Nothing was loaded.')


def _kind(value: Tensor) -> str:
    if value.is_floating_point():
        return 'float'
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32,
                torch.int64)
    return 'integer' if value.dtype in integers else str(value.dtype)


def _described(value) -> str:
    return f'{value.dtype} of {value.layout}' if isinstance(value, Tensor) \
        else f'a {type(value).__name__}'


def check_quantizers(layers: Dict[str, nn.Module], entries: dict) -> None:
    """A quantized checkpoint must have all that quantization saved.

    Args:
        layers (dict[str, nn.Module]): Converted layers, by name.
        entries (dict): Entries of the checkpoint.

    Raises:
        CheckpointError: Something is missing or of another shape.
    """
    for name, layer in layers.items():
        wanted = {join(name, key): value
                  for key, value in layer.quantizer_state().items()
                  if not key.endswith(EXTRA_STATE)}
        if is_of_other_head(layer, name, entries):
            wanted = {key: value for key, value in wanted.items()
                      if not key.startswith(join(name, 'weight_quantizer.'))}
        elif getattr(layer, 'weight_quantizer', None) is not None \
                and join(name, PACKED) not in entries:
            wanted[join(name, layer.weight_name)] = layer.latent_weight
        for key, own in wanted.items():
            if key not in entries:
                raise CheckpointError(
                    'the quantized checkpoint is damaged: entries are missing,'
                    f' {key} for one. Nothing was loaded (parts: part_of).')
            if entries[key].shape != own.shape:
                raise CheckpointError(
                    f'the quantized checkpoint is damaged: {key} has shape '
                    f'{tuple(entries[key].shape)}, the model '
                    f'{tuple(own.shape)}. Nothing was loaded.')


def check_entries(layers: Dict[str, nn.Module], entries: dict) -> None:
    """Quantizers (as above) must have a place for all that a checkpoint says
    of them.

    Raises:
        CheckpointError: An entry that is not zero has none.
    """
    own = {join(name, key) for name, layer in layers.items()
           for key in layer.quantizer_state()}
    quantizers = {join(name, part) for name, layer in layers.items()
                  for part, _ in layer.quantizers()}
    for key, value in entries.items():
        if key.rpartition('.')[0] in quantizers and key not in own \
                and isinstance(value, Tensor) and value.any():
            raise CheckpointError(
                f'the checkpoint has {key}, for which the quantizer of the '
                'config has no place: use the config that it was trained '
                'with (of a code of zero: its asymmetric). Nothing was '
                'loaded.')


def is_of_other_head(layer: nn.Module, name: str, entries: dict) -> bool:
    """Whether the weight is of another shape, and therefore not loaded."""
    if not hasattr(layer, 'latent_weight'):
        return False
    weight = entries.get(join(name, layer.weight_name))
    return isinstance(weight, Tensor) \
        and weight.shape != layer.latent_weight.shape


def check_architecture(model: nn.Module, entries: dict,
                       packed: bool) -> None:
    """A checkpoint must have the model's entries, and no others, if not by
    a second name: code may give one while it trains (DDQ's decoder).

    Raises:
        CheckpointError: It is of another architecture.
    """
    ours = {key: tuple(value.shape)
            for key, value in model.state_dict().items()
            if not key.endswith(EXTRA_STATE)}
    if packed:
        ours.update(packed_shapes(model, ours))
    theirs = {key: tuple(value.shape) if is_stored(value) else 'is damaged'
              for key, value in entries.items()
              if not key.endswith(EXTRA_STATE)}
    differing = sorted({key for key in {*ours, *theirs} if ours.get(
        key) != theirs.get(key)} - _second_names(ours, entries))
    if not differing:
        return
    shown = '\n'.join(
        f'  {key}: checkpoint {theirs.get(key, "has none")}, model '
        f'{ours.get(key, "has none")}' for key in differing[:5])
    late = 'What a module makes in its first forward is there after it. ' \
        if not {*differing} & {*ours} else ''
    raise CheckpointError(
        'the quantized checkpoint is of another architecture than the model, '
        f'or damaged: {len(differing)} entries differ (shapes):\n{shown}\n'
        f'Nothing was loaded; use the config published with it. {late}For '
        'another head, load a latent or training checkpoint by load_from or '
        "mmengine's load_checkpoint (of EMAHook without its ema_state_dict).")


def demands() -> Tuple[bool, bool]:
    """Whether the running ``load_state_dict`` (torch's, mmengine's) will raise
    where names, and where shapes, differ: after it has copied what fits."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _LOAD:
            return frame.f_locals['strict'], True
        if frame.f_code.co_name == 'load_state_dict' \
                and 'strict' in frame.f_locals:
            strict = frame.f_locals['strict']
            return strict, strict
        frame = frame.f_back
    return False, False


# Classes whose way to load gives old entries other names, and no other shapes.
RENAMING = {
    'mmdet': {'SingleStageDetector', 'TwoStageDetector', 'SemiBaseDetector',
              'AnchorFreeHead', 'VFNetHead'},
    'mmcv': {'DeformConv2dPack', 'ModulatedDeformConv2dPack'}}


def adapts(module: nn.Module, entries: dict,
           gates: Callable[[nn.Module], list]) -> bool:
    """Whether a part changes entries as it loads them (ViT resizes positions),
    so that others fit. What only renames does nothing to a file of all names.

    Args:
        module (nn.Module): A quantized model or a part of one.
        entries (dict): What it loads.
        gates (callable): Gives our own hooks of a part.
    """
    renames = False
    for part in module.modules():
        if (len(part._load_state_dict_pre_hooks) > len(gates(part))
                or part._load_state_dict_post_hooks):
            return True
        load = type(part)._load_from_state_dict
        package = load.__module__.partition('.')[0]
        if package != 'torch':
            owner = load.__qualname__.partition('.')[0]
            if owner not in RENAMING.get(package, ()):
                return True
            renames = True
    return renames and not module.state_dict().keys() <= entries.keys()


def _second_names(ours: Dict[str, tuple], entries: dict) -> Set[str]:
    """Entries that stand in the file under a name of the model as well."""
    own = {key: entries[key] for key in ours if is_stored(entries.get(key))}
    others = {key: value for key, value in entries.items()
              if key not in ours and is_stored(value)}
    if sum(map(_size, others.values())) > sum(map(_size, own.values())):
        return set()  # claims more than the model: not worth hashing
    wanted = {_kind_of(key, value) for key, value in others.items()}
    known = {_hash(key, value) for key, value in own.items()
             if _kind_of(key, value) in wanted}
    return {key for key, value in others.items()
            if _hash(key, value) in known}


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _kind_of(key: str, value: Tensor) -> tuple:
    return key.rpartition('.')[2], value.dtype, value.shape


def _hash(key: str, value: Tensor) -> bytes:
    return digest({key.rpartition('.')[2]: value})


def check_values(model: nn.Module, layers: Dict[str, nn.Module],
                 entries: dict) -> None:
    """Values that a training gives: finite, and none below zero where it
    cannot be.

    Buffers of the model's own may be infinite (masks are), its parameters
    and statistics of normalization may not; those of quantizers where they
    began so.

    Args:
        model (nn.Module): The converted model, or a part of it.
        layers (dict[str, nn.Module]): Its converted layers, by name.
        entries (dict): Entries of the checkpoint; what the model has is of its
            kind.

    Raises:
        CheckpointError: The layer, and what is wrong.
    """
    for key, own in model.named_parameters(remove_duplicate=False):
        _check(key, entries.get(key), own)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(getattr(module, 'running_var', None), Tensor):
            for part in ('running_mean', 'running_var'):
                key = join(name, part)
                _check(key, entries.get(key), getattr(module, part),
                       negative=part == 'running_mean')
    for name, layer in layers.items():
        for part, quantizer in layer.quantizers():
            start, state = start_of(quantizer), quantizer.state_dict()
            for entry in start:  # not get_extra_state's
                key, own = join(name, f'{part}.{entry}'), state[entry]
                _check(key, entries.get(key), own,
                       negative=entry not in quantizer.non_negative,
                       finite=bool(start[entry].isfinite().all()))
                _check_greatest(key, entries.get(key),
                                quantizer.greatest.get(entry))
        if join(name, PACKED) in entries:
            check_codes(layer, entries[join(name, PACKED)],
                        join(name, PACKED))


def _check(key: str, value, own: Tensor, negative: bool = True,
           finite: bool = True) -> None:
    if value is None or value.shape != own.shape or not value.numel() \
            or value.dtype == torch.bool:
        return
    if value.is_floating_point():
        # NaN is the least and the greatest of all: one pass tells.
        if finite and not all(map(math.isfinite, torch.aminmax(value))):
            # In pieces: the masks take three times the memory.
            bad = sum(int((~torch.isfinite(piece)).sum())
                      for piece in value.flatten().split(2**20))
            raise CheckpointError(
                f'{key} has {bad} NaN or infinite values of {value.numel()}: '
                'the training before it is broken, or the file is damaged. '
                'Nothing was loaded; start from another checkpoint.')
    elif int(value.max()) > MAX_UPDATES and not negative:
        raise CheckpointError(
            f'{key} is {int(value.max())}, allowed: 0 to {MAX_UPDATES}. The '
            'file is damaged; nothing was loaded.')
    if not negative and float(value.min()) < 0:
        raise CheckpointError(
            f'{key} has a value of {float(value.min()):g}, allowed: 0 and '
            'above. The file is damaged; nothing was loaded.')


def _check_greatest(key: str, value, most: Optional[float]) -> None:
    if None not in (value, most) and float(value.max()) > most:
        raise CheckpointError(
            f'{key} has a value of {float(value.max()):g}, allowed: at most '
            f'{most:g}. The file is damaged; nothing was loaded.')


def join(name: str, key: str) -> str:
    """Name of an entry of a layer, which may be the model."""
    return f'{name}.{key}' if name else key
