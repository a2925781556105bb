"""A training checkpoint and its config -> a file to publish."""
import copy
import datetime
import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any, List, Optional, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import load_checkpoint
from torch import nn

from ..checkpoint import (
    FORMAT,
    NAME,
    CheckpointError,
    added_later,
    float_weights,
    pack,
    seal,
)
from ..config import QuantConfig
from ..errors import check
from ..training import get_state
from ..version import __version__
from ..writing import write_whole
from .agreement import batch_to_try, first_difference, outputs_of
from .averaging import warn_of_averaged
from .reading import read_checkpoint, weights_of
from .scopes import build_model, read_config, type_name

# Of the training run, not of the model.
_RUN_KEYS = ('work_dir', 'load_from', 'resume', 'launcher')


def quantization_of(cfg: Config) -> dict:
    """The ``quantization`` of a config: its model's or its hook's.

    Raises:
        ValueError: The config has none, or one that is no dict.
    """
    for place in (cfg.model, *gdrq_hooks(cfg)):
        found = place.get('quantization')
        if found or place is cfg.model and found is not None:
            check(isinstance(found, dict), 'quantization', found,
                  'a dict, such as dict(weight=dict(bits=4), '
                  'activation=dict(bits=4))')
            return found.to_dict()
    raise ValueError(
        f'{cfg.filename or "the config"} quantizes nothing: it has neither a '
        'GDRQHook with quantization=dict(...) in custom_hooks nor '
        "model.type='QuantizedModel'")


def gdrq_hooks(cfg: Config) -> list:
    """Entries of custom_hooks, by name, scoped name or class.

    Raises:
        ValueError: It is no list of dicts.
    """
    hooks = cfg.get('custom_hooks') or ()
    check(isinstance(hooks, (list, tuple)) and all(
        isinstance(hook, dict) for hook in hooks), 'custom_hooks', hooks,
        "a list of dicts, custom_hooks=[dict(type='GDRQHook', ...)]")
    return [hook for hook in hooks if type_name(hook) == 'GDRQHook']


def _custom_imports(cfg: Config) -> dict:
    """gdrq_mm, and what the training imported.

    Code of hooks or data sets need not be where a published model is opened:
    a module that is absent there gives a warning.
    """
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else imports
    others = [name for name in imports if name != 'gdrq_mm']
    return dict(imports=['gdrq_mm', *others],
                allow_failed_imports=bool(others))


def inference_config(cfg: Config) -> Config:
    """The same config with ``model.type='QuantizedModel'``.

    Inferencers run no hooks, so published configs say it in the model, with
    all fields: they are read by versions with other defaults.
    """
    quantization = QuantConfig.from_dict(
        quantization_of(cfg)).with_all_fields().to_dict()
    cfg = copy.deepcopy(cfg)
    if type_name(cfg.model) != 'QuantizedModel':
        model = cfg.model.to_dict()
        cfg.model = ConfigDict(
            type='QuantizedModel', architecture=model.pop('type'),
            **model)
    cfg.model.quantization = ConfigDict(quantization)
    for hook in gdrq_hooks(cfg):
        for key in ('quantization', 'distill'):  # its teacher stays behind
            hook.pop(key, None)
    for key in _RUN_KEYS:
        cfg.pop(key, None)
    cfg.custom_imports = _custom_imports(cfg)
    return cfg


def publish(config: str, checkpoint: str, out_dir: str, latent: bool = False,
            cfg_options: Optional[dict] = None) -> Tuple[Path, Path]:
    """Write a checkpoint to publish, and its config beside it.

    The file is named ``<config>_<date>-<hash>.pth`` as OpenMMLab names its
    own, holds plain tensors and primitive types only, and is sealed by a
    format version and a hash of its weights. It is there whole or not at all:
    it is written under another name, loaded with ``weights_only=True`` into a
    model built from the config and compared, then gets its name.

    Args:
        config (str): The config it was trained with.
        checkpoint (str): The training checkpoint; EMA weights are used where
            it has them, as the runner stores them in ``state_dict``.
        out_dir (str): Folder, made if missing.
        latent (bool): Keep float weights, to train on. Defaults to False:
            weights are packed into codes.
        cfg_options (dict, optional): What the training changed in the config.

    Returns:
        tuple[Path, Path]: The checkpoint and the config. ``float_bytes`` in
        the checkpoint's meta is the size of the float model's file.

    Raises:
        ValueError: The config quantizes nothing, or the checkpoint is a float
            one, a published one, a reshaped one, or none at all.
        RuntimeError: The checkpoint is damaged, or does not fit the config.
        FileExistsError: A file of that name is there.
    """
    cfg = read_config(config, cfg_options)
    cfg = inference_config(cfg)
    trained = read_checkpoint(checkpoint)
    weights = weights_of(trained)
    if f'{NAME}.schemes' not in weights:
        raise ValueError(
            f'{checkpoint} holds a float model: nothing in it is quantized. '
            'Publish the checkpoint of a training with GDRQHook or '
            'QuantizedModel.')
    if f'{NAME}.format' in weights:  # a seal, which trainings do not write
        raise ValueError(f'{checkpoint} is published already: publish the '
                         'training checkpoint, or copy the file')
    model = build_model(cfg)
    load_all(model, weights)
    if get_state(model).phase != 'quantize':
        raise ValueError(
            f"{checkpoint} is of the 'reshape' phase, in which nothing is "
            'rounded: publish one of the epochs after rounding began')
    warn_of_averaged(model, trained)
    meta = {key: _primitive(trained['meta'][key])
            for key in ('dataset_meta', 'epoch', 'iter')
            if key in trained.get('meta', {})}
    meta.update(cfg=cfg.pretty_text, gdrq_mm_version=__version__,
                gdrq_format='latent' if latent else 'packed',
                gdrq_format_version=FORMAT,
                float_bytes=_float_bytes(model))
    if latent:
        weights = {key: value.contiguous() for key, value in
                   model.state_dict().items()}
        seal(weights, NAME, meta)
    else:
        weights = pack(model, meta)
    content = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=weights), content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()
    date = datetime.date.today().strftime('%Y%m%d')
    stem = f'{Path(config).stem}_{date}-{digest[:8]}'
    target, target_cfg = (Path(out_dir) / f'{stem}.{suffix}'
                          for suffix in ('pth', 'py'))
    # A config alone is what an interrupted publication may have left.
    written = target_cfg.exists()
    if written and target_cfg.read_text(
            encoding='utf-8') != cfg.pretty_text:
        raise FileExistsError(f'{target_cfg} exists and is another config; '
                              'remove it or choose another folder')
    with write_whole(target) as part:
        part.write_bytes(content.getbuffer())
        _check_published(cfg, part, model)
        if not written:
            with write_whole(target_cfg) as part_cfg:
                part_cfg.write_text(cfg.pretty_text, encoding='utf-8')
        # The checkpoint last: where it is, its config is.
    return target, target_cfg


def _float_bytes(model) -> int:
    """Size of a file of the float model's weights."""
    with tempfile.TemporaryFile() as file:
        torch.save(float_weights(model.state_dict()), file)
        return file.tell()


def load_all(model: nn.Module, state_dict: dict) -> None:
    """Load a checkpoint that must have all of the model, and no more.

    Some models do not even load what they save (Swin V2 drops entries that it
    computes): what is missing of their own may be missing of the file. Others
    give old entries new names, so the model is of no use where this raises.

    Raises:
        CheckpointError: It is refused, or entries are missing or left over.
    """
    own = model.load_state_dict(model.state_dict(), strict=False)
    try:
        found = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        if isinstance(error, CheckpointError):
            raise
        told = str(error).splitlines()[:2][-1].strip()  # torch tells of all
        raise CheckpointError(f'the checkpoint is of another model: {told} '
                              'Give the config it was trained with') from None
    missing = set(found.missing_keys) - set(own.missing_keys) \
        - added_later(model, state_dict).keys()
    unexpected = set(found.unexpected_keys) - set(own.unexpected_keys)
    for what, keys in (('lacks', missing), ('has', unexpected)):
        if keys:
            raise CheckpointError(
                f'the checkpoint {what} {len(keys)} entries that the model of '
                f'the config {"has" if what == "lacks" else "lacks"}, '
                f'{min(keys)} for one: it is of another model.')


def _check_published(cfg: Config, checkpoint: Path, model: nn.Module) -> None:
    """The file must give a model with the very same outputs.

    Weights could agree and outputs not: code that reads ``layer.weight`` past
    the layer's forward reads codes' values in the one and float weights in
    the other.
    """
    copied = build_model(Config.fromstring(cfg.pretty_text, '.py'))
    load_checkpoint(copied, str(checkpoint), map_location='cpu',
                    logger='silent')
    differing = _differing_entries(model, copied)
    batch = batch_to_try(cfg)
    try:
        ours = outputs_of(model, batch)
    except Exception as error:
        raise RuntimeError(
            'the trained model does not run on the batch that the published '
            f'one is compared on, on a CPU ({error!r}): give the config a '
            'test_dataloader whose data are there, and operators that CPUs '
            'have. Nothing was written.') from error
    name = differing[0] if differing else first_difference(
        ours, outputs_of(copied, batch))
    if name is not None:
        raise RuntimeError(
            f'{name}: the published model gives another output than the '
            'trained one. If code reads the weight of a layer past its '
            'forward, exclude that layer with dict(match=..., skip=True) in '
            'the rules and train again, or publish with --latent. Nothing '
            'was written.')
    _check_thresholds(model, {name for name, _ in ours})


@torch.no_grad()
def _differing_entries(model: nn.Module, copied: nn.Module) -> List[str]:
    """Names that differ, also in layers that the batch does not reach."""
    layers = [get_state(each).layers for each in (model, copied)]
    quantized = [name for name, layer in layers[0].items()
                 if getattr(layer, 'weight_quantizer', None) is not None]
    differing = [name for name in quantized if not torch.equal(*(
        each[name].weight_quantizer(each[name].latent_weight)
        for each in layers))]
    skipped = tuple(f'{name}.{part}'.lstrip('.') for name in quantized
                    for part in (layers[0][name].weight_name, 'weight_'))
    theirs = copied.state_dict()
    return differing + [
        key for key, value in model.state_dict().items()
        if not key.startswith(skipped) and not torch.equal(value, theirs[key])]


def _check_thresholds(model: nn.Module, called: set) -> None:
    """What runs must have its activation thresholds."""
    unset = [f'{name}.{part}'.lstrip('.')
             for name, layer in get_state(model).layers.items()
             for part, quantizer in layer.activation_quantizers()
             if f'{name}.{part}'.lstrip('.') in called or name in called
             if not quantizer.initialized
             # What a quantized ReLU gives is on its grid already.
             and not (part == 'input_quantizer' and layer.reads_grid)]
    if unset:
        raise ValueError(
            f'{len(unset)} activation thresholds were never set, '
            f'{unset[0]} for one: these activations would stay float. Train '
            'the model, or calibrate it (gdrq calibrate), and publish '
            'that checkpoint.')


def _primitive(value: Any) -> Any:
    """numpy values and tuples in metadata -> primitive Python types."""
    if isinstance(value, dict):
        return {key: _primitive(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_primitive(item) for item in value)
    return value.tolist() if hasattr(value, 'tolist') else value
