"""A checkpoint on its way into a quantized model: checked, then adapted.

All checks come before anything is loaded, so that a checkpoint that is
refused changes nothing.
"""
import functools
import json
from typing import Optional

import torch
from torch import Tensor, nn

from .integrity import open_seal
from .keys import NAME, is_packed, is_quantizer_entry
from .packing import packed_shapes, unpack_weight


def add_load_gate(model: nn.Module, state: nn.Module) -> None:
    """Let ``model`` check what it loads, as a whole and layer by layer.

    Args:
        model (nn.Module): The converted model.
        state (QuantizationState): Its state.
    """
    # Before those of the layers: what it refuses changes nothing.
    model._register_load_state_dict_pre_hook(
        functools.partial(_before_load, state), True)
    for layer in state.layers.values():
        layer._register_load_state_dict_pre_hook(before_layer_load, True)


def remove_load_gate(model: nn.Module) -> None:
    """Merged models load no training checkpoints."""
    hooks = model._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook.hook, 'func', None) is _before_load:
            del hooks[key]


def _before_load(state, model, state_dict, prefix, *_) -> None:
    """Load hook of the whole model; raises before anything changes."""
    phase = prepare(state, model, state_dict, prefix)
    if phase is not None:
        state.enter_loaded_phase(phase)


def prepare(state, model, state_dict: dict, prefix: str) -> Optional[int]:
    """Check a state dict and give it the entries that it lacks.

    A float checkpoint gets the quantization entries of a fresh model, and
    so does a reshaped one of another scheme: nothing in it was rounded yet.
    A quantized one must have this model's schemes, a packed one its
    architecture as well.

    Args:
        state (QuantizationState): Of the model.
        model (nn.Module): The converted model.
        state_dict (dict): The checkpoint, is changed.
        prefix (str): Of the model in it.

    Returns:
        int, optional: Index of the phase it was saved in; None for a float
        one.

    Raises:
        RuntimeError: The checkpoint is damaged, of another model or
            quantization, or packed from another architecture.
    """
    own = f'{prefix}{NAME}.'
    open_seal(state_dict, prefix, NAME)
    if _is_other_reshaped(state, state_dict, own):
        for key in filter(is_quantizer_entry, list(state_dict)):
            del state_dict[key]
    if own + 'schemes' in state_dict:
        _check_schemes(state.schemes, state_dict[own + 'schemes'])
        _check_entries(state, state_dict, prefix)
        if is_packed(state_dict):
            _check_architecture(model, state_dict, prefix)
        return int(state_dict[own + 'phase_index'])
    _check_any(model, state_dict, prefix)
    state_dict[own + 'schemes'] = state.schemes
    state_dict[own + 'phase_index'] = state.phase_index
    for name, layer in state.layers.items():
        where = f'{prefix}{name}.' if name else prefix
        for key, value in layer.quantizer_state().items():
            state_dict[where + key] = torch.zeros_like(value)
    return None


def before_layer_load(layer, state_dict, prefix, *_) -> None:
    """Load hook of one layer: a float one has no quantization entries.

    One a layer, because parts of a model load alone as well (the ``init_cfg``
    of a backbone). Packed codes become the weight they stand for.
    """
    unpack_weight(layer, state_dict, prefix)
    fresh = layer.quantizer_state()
    if any(prefix + key in state_dict for key in fresh):
        # The weight of another head is not loaded: nor are its clip values.
        weight = state_dict.get(f'{prefix}weight')
        other = weight is not None and weight.shape != layer.weight.shape
        fresh = {key: value for key, value in fresh.items()
                 if other and key.startswith('weight_quantizer.')}
    for key, value in fresh.items():
        state_dict[prefix + key] = torch.zeros_like(value)
    layer.forget()


def _check_any(model, state_dict, prefix: str) -> None:
    """A checkpoint must have something of the model."""
    if state_dict and not any(prefix + key in state_dict
                              for key in model.state_dict()):
        raise RuntimeError(
            'the checkpoint has no entry of this model (its first one is '
            f'{next(iter(state_dict))!r}): it is of another model, or '
            'damaged. Nothing was loaded.')


def _check_architecture(model, state_dict, prefix: str) -> None:
    """A packed checkpoint must have the model's entries, and no others."""
    ours = {key: tuple(value.shape)
            for key, value in model.state_dict().items()}
    ours.update(packed_shapes(model, ours))
    theirs = {key[len(prefix):]: tuple(value.shape)
              for key, value in state_dict.items() if key.startswith(prefix)}
    differing = sorted(key for key in {*ours, *theirs}
                       if ours.get(key) != theirs.get(key))
    if not differing:
        return
    shown = '\n'.join(
        f'  {key}: checkpoint {theirs.get(key, "has none")}, model '
        f'{ours.get(key, "has none")}' for key in differing[:5])
    raise RuntimeError(
        'the packed checkpoint is of another architecture than the model, '
        f'{len(differing)} entries differ (shapes):\n{shown}\nNothing was '
        'loaded; use the config published with it (meta["cfg"] of the '
        'checkpoint). Only latent and training checkpoints can start models '
        'with other heads.')


def _is_other_reshaped(state, state_dict, own: str) -> bool:
    """Whether it is of the 'reshape' phase, by another scheme."""
    return (own + 'schemes' in state_dict
            and int(state_dict.get(own + 'phase_index', 1)) == 0
            and not torch.equal(state_dict[own + 'schemes'].cpu(),
                                state.schemes.cpu()))


def _check_entries(state, state_dict, prefix: str) -> None:
    """A quantized checkpoint must have all it was saved with."""
    missing = [
        key for name, layer in state.layers.items()
        for key in ((f'{prefix}{name}.' if name else prefix) + entry
                    for entry in layer.quantizer_state())
        if key not in state_dict]
    if missing:
        raise RuntimeError(
            f'the quantized checkpoint is damaged: {len(missing)} entries '
            f'are missing, {missing[0]} for one. Nothing was loaded.')


def _check_schemes(own: Tensor, encoded: Tensor) -> None:
    ours = json.loads(bytes(own.tolist()))
    try:
        theirs = json.loads(bytes(encoded.tolist()))
    except (TypeError, ValueError) as error:
        raise RuntimeError('the quantized checkpoint is damaged: its schemes '
                           'are no JSON. Nothing was loaded.') from error
    if ours == theirs:
        return
    differing = sorted(
        name for name in {*ours, *theirs}
        if ours.get(name) != theirs.get(name))
    shown = '\n'.join(
        f'  {name}: checkpoint {theirs.get(name, "float")}, '
        f'config {ours.get(name, "float")}' for name in differing[:5])
    more = f'\n  ... and {len(differing) - 5} more' \
        if len(differing) > 5 else ''
    raise RuntimeError(
        'the checkpoint was trained with another quantization than the '
        f'config asks for, {len(differing)} layers differ:\n{shown}{more}'
        '\nUse the config it was trained with (the runner keeps a copy in '
        'its work_dir, a published file in meta["cfg"]). To start a new '
        'training from its weights alone, make a float checkpoint of one '
        'that is not packed:\n'
        '  import torch\n'
        '  from gdrq_mm.checkpoint import is_quantizer_entry\n'
        '  weights = torch.load(path, map_location="cpu")["state_dict"]\n'
        '  weights = {key: value for key, value in weights.items()\n'
        '             if not is_quantizer_entry(key)}\n'
        '  torch.save(dict(state_dict=weights), new_path)')
