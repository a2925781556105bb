"""Which layer becomes which; layers of your own: see docs/extend.md."""
import inspect
from typing import Callable, Dict, NamedTuple, Optional, Set, Tuple, Type

from torch import Tensor, nn

from ..modes import is_traced_by_dynamo
from .base import InputFirst, QuantLayer
from .relu import QuantReLU


class MergedForm(NamedTuple):
    """What takes the place of quantized layers of a type in merged models.

    Args:
        float_class (type): Computes the same from rounded inputs and weights.
        integer (callable, optional): Makes the layer that computes on codes.
    """
    float_class: Type[nn.Module]
    integer: Optional[Callable[..., nn.Module]] = None


QUANT_LAYERS: Dict[Type[nn.Module], Type[nn.Module]] = {}
MERGED_FORMS: Dict[Type[nn.Module], MergedForm] = {}


class OwnForward(QuantLayer):
    """A quantized layer that computes as its float class does.

    The forward of that class gets a quantized first argument, and quantized
    values wherever it reads its ``weight``.
    """

    def forward(self, x: Tensor, *args, **kwargs):
        x = self.quantized_input(x)
        if not is_traced_by_dynamo():
            return super().forward(x, *args, **kwargs)
        self.in_own_forward = True
        out = super().forward(x, *args, **kwargs)
        self.in_own_forward = False
        return out


def register_quant_layer(
        float_class: Type[nn.Module],
        quant_class: Optional[Type[nn.Module]] = None,
        integer: Optional[Callable[..., nn.Module]] = None) -> None:
    """Let ``quantize_`` turn modules of exactly ``float_class`` into
    quantized ones, and say how they are merged and exported.

    Args:
        float_class (type): Layers that own a Parameter ``weight``, whose
            slices ``weight[i]`` share scales in groups.
        quant_class (type, optional): A :class:`QuantLayer` and a base of
            ``float_class``; its forward replaces that of the float layer.
            Defaults to None: the forward of the float layer is called with
            a quantized first argument, and reads quantized values from its
            ``weight``.
        integer (callable, optional): Makes the layer of merged models that
            computes on codes, called with ``(layer, codes, scale, bias, grid,
            bits)``: the quantized layer, its weight codes, one scale and one
            bias per filter into which :func:`gdrq_mm.deploy.merge` folded the
            normalization, the grid of its input and the bits of its weight.
            It returns a :class:`gdrq_mm.merge.MergedLayer`. Defaults to None:
            that of ``quant_class`` if it has one; otherwise ``float_class``
            computes in float on codes times scales, and merged models and
            exported files say so.

    Raises:
        TypeError: ``quant_class`` is neither a :class:`QuantLayer` nor a
            ReLU.
        ValueError: The forward of ``float_class`` takes no input, or one of
            the ``input_names`` is no name of a quantizer.

    Examples:
        >>> class Shifted(nn.Linear):
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, self.weight) + 1
        >>> register_quant_layer(Shifted)
    """
    if quant_class is None:
        quant_class = _own_forward(float_class)
    elif not issubclass(quant_class, (QuantLayer, nn.ReLU)):
        raise TypeError(
            f'{quant_class.__name__} is no QuantLayer: write '
            f'class {quant_class.__name__}(QuantLayer, '
            f'{float_class.__name__})')
    if issubclass(quant_class, QuantLayer):
        _check_names(quant_class)
        if len(quant_class.input_names) == 1:
            quant_class.input_keywords = tuple(dict.fromkeys((
                *quant_class.input_keywords, _input_keyword(float_class))))
    QUANT_LAYERS[float_class] = quant_class
    known = MERGED_FORMS.get(quant_class)
    if integer is not None or known is None:
        MERGED_FORMS[quant_class] = MergedForm(
            known.float_class if known else float_class, integer)


def added_names(quant_class: Type[nn.Module]) -> Set[str]:
    """Names that a layer has only once it is a ``quant_class``.

    Args:
        quant_class (type): One of ``QUANT_LAYERS.values()``.

    Returns:
        set[str]: Attributes and methods. A float layer that has one for
        something else would lose it.
    """
    names = set(getattr(quant_class, 'input_names', ()))
    for mixin in (QuantLayer, InputFirst, QuantReLU):
        if issubclass(quant_class, mixin):
            names.update(vars(mixin), mixin.__annotations__)
    return names.difference(dir(nn.ReLU), ['weight'])


def _check_names(quant_class: Type[nn.Module]) -> None:
    for name in quant_class.input_names:
        if not name.endswith('_quantizer'):
            raise ValueError(
                f'{quant_class.__name__}.input_names has {name!r}: names end '
                "in '_quantizer', which no weight's does")


def _input_keyword(float_class: Type[nn.Module]) -> str:
    names = list(inspect.signature(float_class.forward).parameters)[1:]
    if not names:
        raise ValueError(
            f'{float_class.__name__}.forward takes no input, and a quantized '
            'layer has one: give it the tensor that its weight meets')
    return names[0]


def _own_forward(float_class: Type[nn.Module]) -> Type[nn.Module]:
    name = f'Quant{float_class.__name__}'
    if name in globals():  # of another package
        name += '_' + float_class.__module__.replace('.', '_')
    # Its bases as well: mmengine's init_cfg looks for names among them.
    bases: Tuple[type, ...] = (OwnForward, float_class,
                               *float_class.__bases__)
    made = type(name, bases, dict(
        __doc__=f'Quantized ``{float_class.__qualname__}``.',
        __module__=__name__))
    globals()[name] = made  # where pickle looks for it
    return made
