"""The part of a config that is about one kind of tensor -> its scheme."""
import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Tuple, Union

from ..errors import check, did_you_mean
from ..quantizers import (
    DEFAULT_TYPE,
    QUANTIZERS,
    ActivationScheme,
    WeightScheme,
    is_int,
)

Scheme = Union[WeightScheme, ActivationScheme]


def build(cls: type, values: Mapping, where: str,
          others: Tuple[str, ...] = ()) -> Any:
    """Build a dataclass from a dict.

    Args:
        cls (type): The dataclass.
        values (dict): Its fields.
        where (str): What the dict is called in errors.
        others (tuple[str]): Fields that are read elsewhere, for hints.

    Raises:
        ValueError: An unknown field.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            names += others
            raise ValueError(
                f'{where} has no field {key!r}; '
                f'{did_you_mean(str(key), names)}')
    return cls(**values)


def build_scheme(side: str, values: Any, where: str,
                 others: Tuple[str, ...] = ()) -> Any:
    """Build the scheme of weights or of activations by its ``type``.

    Args:
        side (str): 'weight', 'activation', or 'products', which are quantized
            as activations are.
        values (dict): Its fields; a scheme is returned as it is.
        where (str): What the dict is called in errors.
        others (tuple[str]): Fields that are read elsewhere, for hints.

    Raises:
        ValueError: No dict, no quantizer of that type for that side, an
            unknown field, or a value that is not allowed.
    """
    base = WeightScheme if side == 'weight' else ActivationScheme
    if isinstance(values, base):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f'{where} is {values!r}, allowed: a dict')
    products = side == 'products'
    side = 'activation' if products else side
    known = {name: getattr(pair, side) for name, pair in QUANTIZERS.items()
             if getattr(pair, side)}
    name = values.get('type', DEFAULT_TYPE)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f'{where}.type is {name!r}, which is no {side} '
                         f'quantizer; {did_you_mean(str(name), known)}')
    if products:
        check('site' not in values, f'{where}.site', values.get('site'),
              'none: products are where they are')
    try:
        return build(known[name].Scheme, values, where, others)
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f'{where}.{error}') from None


def replace_fields(scheme: Scheme, side: str, values: Mapping,
                   where: str) -> Any:
    """A scheme with some fields replaced.

    Another ``type`` takes over what all types have (bits, group size, site),
    and its own defaults for all else.
    """
    inherited = fields_of(scheme, side)
    if values.get('type', scheme.type) != scheme.type:
        base = WeightScheme if side == 'weight' else ActivationScheme
        inherited = {field.name: inherited[field.name]
                     for field in dataclasses.fields(base)
                     if field.name in inherited}
    return build_scheme(side, {**inherited, **values}, where)


def fields_of(scheme: Scheme, side: str) -> Dict[str, Any]:
    """Fields of a scheme that a config may name on some side."""
    fields = dataclasses.asdict(scheme)
    if side == 'products':
        del fields['site']
    return fields


@dataclass(frozen=True)
class ResidualScheme:
    """Which module outputs are quantized whatever reads them, and how.

    Integer kernels give 8 bits where more than one quantizer reads a tensor
    (residual sums and what goes into them). Named here, such tensors are
    rounded in training already; else the export rounds them afterwards.
    ``gdrq analyze residuals`` prints the names.

    Args:
        activation (ActivationScheme): Scheme of each of these quantizers.
        outputs (sequence of str): Modules that return one tensor, or patterns
            whose ``*`` stands for one part of a dotted name. Without any, no
            output is quantized.
    """
    activation: ActivationScheme = ActivationScheme()
    outputs: Tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Any) -> 'ResidualScheme':
        """Build it from ``outputs`` and the fields of an activation scheme,
        whose ``bits`` default to 8.

        Raises:
            ValueError: No ``outputs``, or a value that is not allowed.
        """
        if isinstance(values, cls):
            return values
        if not isinstance(values, Mapping):
            raise ValueError(f'residual is {values!r}, allowed: a dict')
        fields = {'bits': 8, **values}
        outputs = fields.pop('outputs', None)
        check('site' not in fields, 'residual.site', fields.get('site'),
              'none: outputs are where they are')
        check(is_int(fields['bits']) and 2 <= fields['bits'] <= 8,
              'residual.bits', fields['bits'], '2 to 8')
        scheme = build_scheme('activation', fields, 'residual',
                              ('outputs', ))
        check(isinstance(outputs, (list, tuple)) and all(
            isinstance(name, str) and name for name in outputs),
            'residual.outputs', outputs,
            'a list of module names or patterns such as "backbone.layer*.*" '
            '("gdrq analyze residuals CONFIG" prints it)')
        if not outputs:
            return cls()
        return cls(scheme, tuple(outputs))

    def to_dict(self) -> Dict[str, Any]:
        """In primitive types; :meth:`from_dict` gives it back."""
        fields = fields_of(self.activation, 'products')
        return dict(fields, outputs=list(self.outputs))
