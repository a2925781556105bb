"""A checkpoint on its way into a quantized model: checked, then adapted.

The one way in: of a whole model, of a part that loads alone (``init_cfg`` of
a backbone), of a quantized model inside another (a teacher); packed, latent
or of a training; into a float model: refused. Checks come before all loading.
"""
import functools
from collections.abc import Mapping
from typing import Dict, Optional

import torch
from torch import Tensor, nn

from ..quantizers.start import start_of
from .checks import (
    adapts,
    check_architecture,
    check_entries,
    check_kinds,
    check_quantizers,
    check_values,
    demands,
    is_of_other_head,
    join,
)
from .errors import CheckpointError
from .integrity import is_sealed, open_seal
from .keys import (
    NAME,
    PACKED,
    added_later,
    check_schemes,
    encode_schemes,
    read_phase,
    read_schemes,
)
from .packing import unpack_weight
from .parts import float_weights

# Says to the hooks further down that the entries of a layer were checked.
_MARK = 'gdrq_mm_checked'


def add_load_gate(model: nn.Module, state: nn.Module) -> None:
    """Let ``model``, and every part of it, check what it loads.

    Args:
        model (nn.Module): The converted model.
        state (QuantizationState): Its state.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    gated = {}
    for name in _layers_of(model, state):
        parts = name.split('.') if name else []
        for length in range(len(parts) + 1):
            gated[modules['.'.join(parts[:length])]] = True
    for part in gated:
        part._register_load_state_dict_pre_hook(
            functools.partial(_before_load, state), True)


def remove_load_gate(model: nn.Module) -> None:
    """Merged models load no training checkpoints."""
    for module in model.modules():
        for key in _gates(module):
            del module._load_state_dict_pre_hooks[key]


def has_load_gate(module: nn.Module) -> bool:
    """Whether a module is, or has in it, a layer of a quantized model."""
    return bool(_gates(module))


def _gates(module: nn.Module) -> list:
    return [key for key, hook in module._load_state_dict_pre_hooks.items()
            if getattr(hook.hook, 'func', None) is _before_load]


def check_whole(module: nn.Module, state_dict: dict) -> None:
    """Check what a model that need not be quantized is about to load.

    What a quantized model inside it refuses is refused before anything of the
    others is loaded.

    Args:
        module (nn.Module): The model.
        state_dict (dict): Whole; it is not changed.

    Raises:
        CheckpointError: It is of a quantized model and this one is float, or
            a quantized model inside refuses it.
    """
    if not isinstance(state_dict, Mapping):
        return  # torch says so
    modules = dict(module.named_modules(remove_duplicate=False))
    for key in state_dict:
        prefix, found, _ = str(key).partition(f'{NAME}.schemes')
        part = modules.get(prefix.rstrip('.'))
        if found and part is not None and not has_load_gate(part):
            raise CheckpointError(
                'the checkpoint is of a quantized model, and '
                f'{prefix.rstrip(".") or "this model"} is float: its '
                'thresholds and bits would be lost. Build the model with the '
                "config published with it (type='QuantizedModel'), or train "
                'and test with GDRQHook in custom_hooks. For its float '
                'weights alone, save what gdrq_mm.checkpoint.float_weights '
                'gives. Nothing was loaded.')
    for name, part in modules.items():
        hooks = [part._load_state_dict_pre_hooks[key].hook
                 for key in _gates(part)]
        # Not the parent alone: swapped layers (SyncBN) have no gate.
        parts = name.split('.')
        outer = any(has_load_gate(modules['.'.join(parts[:length])])
                    for length in range(len(parts)))
        if hooks and name and not outer:
            prefix = f'{name}.'
            hooks[0](part, {key: value for key, value in state_dict.items()
                            if key.startswith(prefix)}, prefix, dry_run=True)


def _layers_of(module: nn.Module, state) -> Dict[str, nn.Module]:
    """Converted layers, by each of their names in ``module``."""
    converted = set(map(id, state.layers.values()))
    return {name: layer for name, layer in module.named_modules(
        remove_duplicate=False) if id(layer) in converted}


def _schemes_of(module: nn.Module, state) -> Dict[str, dict]:
    """Schemes of the converted layers, by their names in ``module``."""
    every = {plan.name: plan.scheme() for plan in state.plans
             if plan.quantized}
    if module._modules.get(NAME) is state:
        return every
    schemes = {id(layer): every[name] for name, layer in state.layers.items()}
    return {name: schemes[id(layer)] for name, layer
            in module.named_modules() if id(layer) in schemes}


def _before_load(state, module, state_dict, prefix, *_,
                 dry_run: bool = False) -> None:
    """Load hook of the model and of every part with converted layers.

    The outermost of those that load checks, and marks what it has checked.
    """
    layers = _layers_of(module, state)
    marks = {f'{prefix}{join(name, _MARK)}' for name in layers}
    if not marks <= state_dict.keys():
        phase = _prepare(state, module, layers, state_dict, prefix)
        if dry_run:
            return
        state_dict.update(dict.fromkeys(marks, torch.empty(0)))
        if module._modules.get(NAME) is state:
            state.enter_loaded_phase(phase)
    if '' in layers:  # the module is one itself
        del state_dict[f'{prefix}{_MARK}']
        unpack_weight(module, state_dict, prefix)
        module.forget()


def _prepare(state, module, layers, state_dict, prefix: str
             ) -> Optional[int]:
    """Check the entries of a module and give it those that it lacks.

    A float checkpoint gets the quantization entries of a fresh model, and so
    does a reshaped one of another scheme: nothing in it was rounded yet. A
    quantized one must have this model's schemes, a packed one its
    architecture as well.

    Returns:
        int, optional: Index of the phase it was saved in; None for a float
        one.

    Raises:
        CheckpointError: It is damaged, of another model or quantization, or
            packed from another architecture.
    """
    entries = {key[len(prefix):]: value for key, value in state_dict.items()
               if key.startswith(prefix)}
    whole = module._modules.get(NAME) is state
    schemes, ours = read_schemes(entries), _schemes_of(module, state)
    check_kinds(module, entries)
    phase = None
    if schemes is not None:
        phase = read_phase(entries)
        if phase == 0 and schemes != ours:
            entries = float_weights(entries)
            schemes = phase = None
    if schemes is None:
        _check_float(module, layers, entries)
    else:
        later = added_later(module, entries)
        _check_structure(module, layers, {**entries, **later}, schemes, ours)
        open_seal(entries, '', NAME)
        entries.update(later)
    check_values(module, layers, entries)
    if schemes is None:
        entries.update(_fresh(layers, entries))
        if whole and entries:
            entries[f'{NAME}.schemes'] = encode_schemes(ours)
            entries[f'{NAME}.phase_index'] = state.phase_index
    else:
        check_schemes(schemes, ours)
        for name, layer in layers.items():
            if is_of_other_head(layer, name, entries):
                entries.update(_unset(layer, name, 'weight_quantizer'))
        if not whole:  # no entries of a part
            for key in ('schemes', 'phase_index'):
                entries.pop(f'{NAME}.{key}')
    for key in [key for key in state_dict if key.startswith(prefix)]:
        del state_dict[key]
    state_dict.update((prefix + key, value) for key, value in entries.items())
    return phase


def _check_float(module, layers, entries: dict) -> None:
    """It must be of this model, and must not have thresholds."""
    added = [join(name, key) for name, layer in layers.items()
             for key in (PACKED, *layer.quantizer_state())
             if join(name, key) in entries]
    if added or is_sealed(entries, '', NAME):
        raise CheckpointError(
            f'the checkpoint has {added[0] if added else "a seal"} but not '
            f'the schemes that say what it is ({NAME}.schemes). It is '
            'damaged, a part of another one (gdrq_mm.checkpoint.part_of '
            'gives one with its schemes), or was saved without the wrapper '
            'around the model that was converted (convert the model inside '
            'DistributedDataParallel or torch.compile, not the wrapper). '
            'Nothing was loaded.')
    if entries and not any(key in entries for key in module.state_dict()):
        raise CheckpointError(
            'the checkpoint has no entry of this model (its first one is '
            f'{next(iter(entries))!r}): it is of another model, or damaged. '
            'Nothing was loaded.')


def _check_structure(module, layers, entries, schemes, ours) -> None:
    """Names, shapes and sizes."""
    packed = any(join(name, PACKED) in entries for name in layers)
    whole = NAME in module._modules  # only files of whole models are sealed
    if packed and whole and f'{NAME}.format' not in entries:
        raise CheckpointError(
            'the packed checkpoint has no format version: it is damaged, or '
            'was published before gdrq_mm had one. Nothing was loaded; '
            'publish the training checkpoint again.')
    names, shapes = (True, True) if packed else (
        False, False) if adapts(module, entries, _gates) else demands()
    try:
        check_entries(layers, entries)
        if shapes:
            without = dict(entries)
            for part in ('format', 'meta_digest', 'digest', *(
                    () if whole else ('schemes', 'phase_index'))):
                without.pop(f'{NAME}.{part}', None)
            if not names:
                own = module.state_dict()
                without = {key: without.get(key, own[key]) for key in own}
            check_architecture(module, without, packed)
        check_quantizers(layers, entries)
    except CheckpointError:
        check_schemes(schemes, ours)  # of other bits, it has other shapes
        raise


def _fresh(layers, entries: dict) -> Dict[str, Tensor]:
    """Quantization entries that a float checkpoint gets.

    Of a layer whose weight comes with it they are unset, of one without a
    weight if any other is; thresholds of what is not loaded stay.
    """
    fresh = {}
    loaded = {name for name, layer in layers.items()
              if hasattr(layer, 'weight_name')
              and join(name, layer.weight_name) in entries}
    for name, layer in layers.items():
        if name in loaded or (loaded and not hasattr(layer, 'weight_name')):
            fresh.update(_unset(layer, name))
        else:
            fresh.update((join(name, key), value.clone()) for key, value
                         in layer.quantizer_state().items()
                         if isinstance(value, Tensor))
    return fresh


def _unset(layer, name: str, only: str = '') -> Dict[str, Tensor]:
    """What quantizers held when they were built."""
    return {join(name, f'{part}.{key}'): value
            for part, quantizer in layer.quantizers()
            if part == only or not only
            for key, value in start_of(quantizer).items()}
