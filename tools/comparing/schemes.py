"""Schemes by name -> the ``quantization`` of a config at some bits."""
import copy
from pathlib import Path
from typing import Dict, Tuple

from mmengine.config import Config

from gdrq_mm.errors import did_you_mean
from gdrq_mm.openmmlab.publish import gdrq_hooks, quantization_of
from gdrq_mm.quantizers import DEFAULT_TYPE, QUANTIZERS

ENDS_BITS = 8
FILES = ('.py', '.json', '.yaml', '.yml')
# Settings that have a name of their own; all other types of QUANTIZERS have
# the name of the type, with its defaults.
NAMED: Dict[str, dict] = {
    # The defaults.
    'gdrq': dict(weight=dict(type=DEFAULT_TYPE),
                 activation=dict(type=DEFAULT_TYPE)),
    # 2^b - 1 levels in groups of four filters, k of 2, thresholds of means.
    'gdrq-published': dict(
        weight=dict(type=DEFAULT_TYPE, group_size=4, k=2., levels='odd'),
        activation=dict(type=DEFAULT_TYPE, threshold='mean')),
    # A step size per channel; the paper's "lsq" has one per layer.
    'lsq-channel': dict(weight=dict(type='LSQ', group_size=1),
                        activation=dict(type='LSQ')),
}


# Fields of ``quantization`` that name layers of one model.
OF_MODEL = ('rules', 'residual', 'products')

DISTILLED = '+distill'  # at the end of a name


def short_name(name: str) -> str:
    """The name of a scheme without the folder and the ending of its file."""
    base = name.removesuffix(DISTILLED)
    return (Path(base).stem if base.endswith(FILES) else base) \
        + name[len(base):]


def hook_of(name: str) -> dict:
    """Arguments of GDRQHook that a scheme replaces, but ``quantization``.

    Args:
        name (str): As :func:`find_scheme` takes it. A file says them by its
            own GDRQHook or by ``hook = dict(...)``.
    """
    base = name.removesuffix(DISTILLED)
    found: dict = {}
    if base.endswith(FILES):
        cfg = _read(base)
        for hook in (*gdrq_hooks(cfg), cfg.get('hook') or {}):
            found.update((key, value) for key, value in hook.items()
                         if key not in ('type', 'quantization'))
    if base != name and not found.get('distill'):
        found['distill'] = {}  # its defaults
    return copy.deepcopy(found)


def find_scheme(name: str) -> dict:
    """The quantization of a scheme, without bits.

    Args:
        name (str): One of ``NAMED``; the name of a type of ``QUANTIZERS``, in
            small letters; two of those, 'WEIGHTS+ACTIVATIONS'; or a config
            with ``quantization = dict(...)``, a GDRQHook or a
            ``QuantizedModel``. '+distill' may follow, see :func:`hook_of`.

    Raises:
        ValueError: There is no such scheme.
    """
    name = name.removesuffix(DISTILLED)
    if name.endswith(FILES):
        return _of_file(name)
    if name in NAMED:
        return copy.deepcopy(NAMED[name])
    types = {key.lower(): key for key in QUANTIZERS}
    weight, plus, activation = name.partition('+')
    quantization = {}
    for side, part in (('weight', weight),
                       ('activation', activation if plus else weight)):
        if part not in types:
            raise ValueError(
                f'there is no scheme {name!r}; '
                f'{did_you_mean(part, [*NAMED, *types])}, or '
                'WEIGHTS+ACTIVATIONS of these types, or a config file with '
                'quantization=dict(...); +distill may follow')
        if getattr(QUANTIZERS[types[part]], side) is None:
            others = [key for key, kind in types.items()
                      if getattr(QUANTIZERS[kind], side)]
            pair = f'{others[0]}+{part}' if side == 'weight' else \
                f'{part}+{others[0]}'
            raise ValueError(
                f'{types[part]} has no {side} quantizer; pair it with '
                f'another, {pair} for example ({", ".join(others)})')
        quantization[side] = dict(type=types[part])
    return quantization


def _read(name: str) -> Config:
    if not Path(name).is_file():
        raise ValueError(f'the scheme {name} is no file; give the path of a '
                         'config with quantization=dict(...)')
    return Config.fromfile(name, import_custom_modules=False)


def _of_file(name: str) -> dict:
    cfg = _read(name)
    if cfg.get('quantization') is not None:
        return cfg.quantization.to_dict()
    if cfg.get('model') is None:
        raise ValueError(f'the scheme {name} has no quantization=dict(...)')
    return quantization_of(cfg)


def at_bits(quantization: dict, bits: Tuple[int, int], shared: dict) -> dict:
    """A scheme at [weight, activation] bits.

    Args:
        quantization (dict): What :func:`find_scheme` gives.
        bits (tuple[int, int]): Bits of weights and of activations.
        shared (dict): ``OF_MODEL`` of all schemes: what the scheme says
            itself counts, rule by rule.
    """
    result = copy.deepcopy({**shared, **quantization})
    for side, number in zip(('weight', 'activation'), bits):
        result[side] = dict(result.get(side) or {}, bits=number)
    rules = list(quantization.get('rules') or ())
    own = [rule.get('match') for rule in rules]
    rules += [rule for rule in shared.get('rules') or ()
              if rule.get('match') not in own]
    return dict(result, rules=copy.deepcopy(rules))


def parse_bits(text: str) -> Tuple[int, int]:
    """'2,4' -> (2, 4).

    Raises:
        ValueError: Something else, or bits that no quantizer has.
    """
    try:
        weight, activation = map(int, text.strip('[]').split(','))
    except ValueError:
        raise ValueError(f'--bits has {text!r}; give pairs of bits of weights '
                         'and activations, for example 4,4 2,4') from None
    if not (1 <= weight <= 8 and 2 <= activation <= 8):
        raise ValueError(f'--bits has {text!r}; weights have 1 to 8 bits, '
                         'activations 2 to 8')
    return weight, activation
