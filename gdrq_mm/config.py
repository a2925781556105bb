"""The ``quantization`` config: validated schemes and per-layer rules."""
import dataclasses
import difflib
import fnmatch
import warnings
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, Union

from .quantizers import QUANTIZERS


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A hint with the nearest of ``names``, or the first few of them."""
    names = list(names)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return 'did you mean ' + ' or '.join(repr(name) for name in near) + '?'
    shown = ', '.join(repr(name) for name in names[:8])
    return f'allowed: {shown}' + (', ...' if len(names) > 8 else '')


def _build(cls, values: Optional[dict], where: str):
    """Build a dataclass from a dict; an unknown key is an error."""
    if isinstance(values, cls):
        return values
    if not isinstance(values, dict):
        raise ValueError(f'{where} is {values!r}, allowed: a dict')
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise ValueError(
                f'{where} has no field {key!r}; {did_you_mean(key, names)}')
    return cls(**values)


def _check(condition: bool, where: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ValueError(f'{where} is {value!r}, allowed: {allowed}')


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value)


@dataclass(frozen=True)
class WeightScheme:
    """How weights are quantized.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int, optional): 1 to 8. Defaults to None: weights stay float.
        group_size (int): Filters that share a clip value; -1 for the whole
            layer. Defaults to 4.
        k (float): ``T = k * mean|G|``; 2 reshapes towards the uniform
            distribution, less shrinks the weights. Defaults to 2.0.
        clip (str): Where the clip values of quantization come from:
            'threshold' is ``T`` (Algorithm 1); 'search' is that of the least
            quantized loss (Eq. 12), for weights that were not reshaped or
            are not trained. Defaults to 'threshold'.
        projection (bool): Reshape the stored weights: clip them in place to
            ``T`` after each optimizer step. False: they keep their values,
            and only the forward sees them clipped (to ``T``, or to the
            searched value). Defaults to True.
    """
    type: str = 'ScaleClip'
    bits: Optional[int] = None
    group_size: int = 4
    k: float = 2.0
    clip: str = 'threshold'
    projection: bool = True

    def __post_init__(self):
        _check_type('weight', 'weight', self.type)
        _check(self.bits is None or _is_int(self.bits) and 1 <= self.bits <= 8,
               'weight.bits', self.bits, '1 to 8, or None for float')
        _check(_is_int(self.group_size)
               and (self.group_size >= 1 or self.group_size == -1),
               'weight.group_size', self.group_size,
               'a number of filters >= 1, or -1 for the whole layer')
        _check(_is_number(self.k) and 0 < self.k < float('inf'),
               'weight.k', self.k, 'a positive number')
        _check(self.clip in ('threshold', 'search'), 'weight.clip', self.clip,
               "'threshold' or 'search'")
        _check(isinstance(self.projection, bool), 'weight.projection',
               self.projection, 'True or False')
        if self.bits is not None and self.projection and self.k < 2:
            warnings.warn(
                f'weight.k is {self.k}: below 2 every projection shrinks the '
                'weights towards zero; use k >= 2', stacklevel=3)


@dataclass(frozen=True)
class ActivationScheme:
    """How activations are quantized.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int, optional): 2 to 8. Defaults to None: activations stay
            float.
        k (float, optional): ``T_a`` descends to ``k * mean|A|``. Defaults to
            None: by bits and by the sign of the input.
        lr (float): Step of that descent a training step, in (0, 1]. Defaults
            to 0.01.
        site (str): 'input': at the input of each quantized layer; 'relu': at
            the output of each ReLU, one threshold a call site, where layers
            that read no ReLU output fall back to 'input'. Defaults to
            'input'.
    """
    type: str = 'ScaleClip'
    bits: Optional[int] = None
    k: Optional[float] = None
    lr: float = 0.01
    site: str = 'input'

    def __post_init__(self):
        _check(self.bits is None or _is_activation_bits(self.bits),
               'activation.bits', self.bits, '2 to 8, or None for float')
        _check_threshold('activation', self)
        _check(self.site in ('input', 'relu'), 'activation.site', self.site,
               "'input' or 'relu'")


@dataclass(frozen=True)
class ResidualScheme:
    """Which module outputs are quantized whatever reads them, and how.

    Integer kernels give 8 bits where more than one quantizer reads a tensor
    (residual sums and what goes into them). Named here, such tensors are
    rounded in training already; else the export rounds them afterwards.
    ``tools/analyze.py residuals`` prints the names.

    Args:
        type (str): Name in ``QUANTIZERS``. Defaults to 'ScaleClip'.
        bits (int): 2 to 8. Defaults to 8.
        k (float, optional): As of :class:`ActivationScheme`. Defaults to
            None: three times the default of activations.
        lr (float): Likewise. Defaults to 0.01.
        outputs (sequence of str): Modules that return one tensor, or patterns
            whose ``*`` stands for one part of a dotted name. Must be given;
            of none, nothing is quantized.
    """
    type: str = 'ScaleClip'
    bits: int = 8
    k: Optional[float] = None
    lr: float = 0.01
    outputs: Tuple[str, ...] = None

    def __post_init__(self):
        _check(_is_activation_bits(self.bits), 'residual.bits', self.bits,
               '2 to 8')
        _check_threshold('residual', self)
        _check(isinstance(self.outputs, (list, tuple)) and all(
            isinstance(name, str) and name for name in self.outputs),
            'residual.outputs', self.outputs,
            'a list of module names or patterns such as "backbone.layer*.*" '
            '("python tools/analyze.py residuals CONFIG" prints it)')
        object.__setattr__(self, 'outputs', tuple(self.outputs))

    def activation(self) -> ActivationScheme:
        """The scheme of each of these quantizers."""
        return ActivationScheme(self.type, self.bits, self.k, self.lr)


def _is_activation_bits(value: Any) -> bool:
    return _is_int(value) and 2 <= value <= 8


def _check_threshold(where: str, scheme) -> None:
    """What the schemes of activations and of outputs have in common."""
    _check_type(where, 'activation', scheme.type)
    _check(scheme.k is None or _is_number(scheme.k)
           and 0 < scheme.k < float('inf'), f'{where}.k', scheme.k,
           'a positive number, or None for the default of the bits')
    _check(_is_number(scheme.lr) and 0 < scheme.lr <= 1, f'{where}.lr',
           scheme.lr, 'a number in (0, 1]')


def _check_type(where: str, side: str, name: str) -> None:
    names = [key for key, pair in QUANTIZERS.items() if getattr(pair, side)]
    if name not in names:
        raise ValueError(f'{where}.type is {name!r}, which is no {side} '
                         f'quantizer; {did_you_mean(str(name), names)}')


@dataclass(frozen=True)
class Rule:
    """What differs for the layers whose name matches a pattern.

    Args:
        match (str): Layer name or pattern with ``*``, ``?``, ``[...]``.
        skip (bool): Leave these layers float. Defaults to False.
        weight (dict): Fields of :class:`WeightScheme` to replace.
        activation (dict): Fields of :class:`ActivationScheme` to replace.
    """
    match: str = ''
    skip: bool = False
    weight: Optional[dict] = None
    activation: Optional[dict] = None

    def __post_init__(self):
        _check(isinstance(self.match, str) and self.match != '', 'rule.match',
               self.match, 'a layer name or a pattern such as "backbone.*"')
        _check(isinstance(self.skip, bool), f'rule {self.match!r}: skip',
               self.skip, 'True or False')
        for side in ('weight', 'activation'):
            value = getattr(self, side)
            _check(value is None or isinstance(value, dict),
                   f'rule {self.match!r}: {side}', value, 'a dict')
        if self.skip and (self.weight or self.activation):
            raise ValueError(f'rule {self.match!r} both skips its layers and '
                             'gives them bits; keep one of the two')
        if not (self.skip or self.weight or self.activation):
            raise ValueError(f'rule {self.match!r} changes nothing; give it '
                             'skip=True, weight=dict(...) or '
                             'activation=dict(...)')


@dataclass(frozen=True)
class QuantConfig:
    """The whole ``quantization`` config.

    Args:
        weight (dict or WeightScheme): Defaults to float weights.
        activation (dict or ActivationScheme): Defaults to float activations.
        rules (sequence of dict or Rule): Per-layer changes; the first rule
            that matches a layer wins.
        residual (dict or ResidualScheme): Defaults to none: no output is
            quantized.

    Raises:
        ValueError: An unknown field or a value that is not allowed.

    Examples:
        >>> config = QuantConfig.from_dict(dict(
        ...     weight=dict(bits=2, group_size=4), activation=dict(bits=4),
        ...     rules=[dict(match='backbone.conv1', weight=dict(bits=8))]))
        >>> config.schemes('backbone.conv1')[0].bits
        8
    """
    weight: WeightScheme = WeightScheme()
    activation: ActivationScheme = ActivationScheme()
    rules: Tuple[Rule, ...] = ()
    residual: ResidualScheme = ResidualScheme(outputs=())

    @classmethod
    def from_dict(cls, config: Union[dict, 'QuantConfig']) -> 'QuantConfig':
        if isinstance(config, cls):
            return config
        if not isinstance(config, dict):
            raise TypeError('quantization must be a dict or a QuantConfig, '
                            f'got {type(config).__name__}')
        config = _build(_Sections, config, 'quantization')
        rules = () if config.rules is None else config.rules
        _check(isinstance(rules, (list, tuple)), 'quantization.rules', rules,
               'a list of dicts')
        rules = tuple(
            _build(Rule, rule, f'quantization.rules[{index}]')
            for index, rule in enumerate(rules))
        self = cls(
            _build(WeightScheme, {} if config.weight is None
                   else config.weight, 'weight'),
            _build(ActivationScheme, {} if config.activation is None
                   else config.activation, 'activation'),
            rules,
            _build(ResidualScheme, dict(outputs=())
                   if config.residual in (None, {}) else config.residual,
                   'residual'))
        for rule in rules:
            self._apply(rule)  # the values of rules are checked here
        return self

    def to_dict(self) -> Dict[str, Any]:
        """The config in primitive types; ``from_dict`` gives it back."""
        rules = [{key: dict(value) if isinstance(value, dict) else value
                  for key, value in dataclasses.asdict(rule).items() if value}
                 for rule in self.rules]
        config = dict(weight=dataclasses.asdict(self.weight),
                      activation=dataclasses.asdict(self.activation),
                      rules=rules)
        if self.residual != ResidualScheme(outputs=()):
            config['residual'] = dict(dataclasses.asdict(self.residual),
                                      outputs=list(self.residual.outputs))
        return config

    def rule_of(self, name: str) -> Optional[Rule]:
        """The first rule that matches layer ``name``."""
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.match):
                return rule
        return None

    def schemes(self, name: str) -> Tuple[WeightScheme, ActivationScheme]:
        """The schemes of layer ``name``, its rule applied."""
        rule = self.rule_of(name)
        if rule is None:
            return self.weight, self.activation
        return self._apply(rule)

    def _apply(self, rule: Rule) -> Tuple[WeightScheme, ActivationScheme]:
        if rule.skip:
            return WeightScheme(), ActivationScheme(site=self.activation.site)
        where = f'rule {rule.match!r}: '
        weight = _build(WeightScheme, {
            **dataclasses.asdict(self.weight), **(rule.weight or {})},
            where + 'weight')
        activation = _build(ActivationScheme, {
            **dataclasses.asdict(self.activation), **(rule.activation or {})},
            where + 'activation')
        return weight, activation

    def check_rules(self, names: Iterable[str],
                    aliases: Mapping[str, str] = {}) -> None:
        """Every pattern must match a layer.

        Args:
            names (iterable of str): The layers.
            aliases (mapping): Second names of modules -> their name here.

        Raises:
            ValueError: A pattern matches none of ``names``.
        """
        names = list(names)
        for rule in self.rules:
            if not any(fnmatch.fnmatchcase(name, rule.match)
                       for name in names):
                for alias, name in aliases.items():
                    if fnmatch.fnmatchcase(alias, rule.match):
                        raise ValueError(
                            f'rule pattern {rule.match!r} matches {alias}, '
                            f'which is the same module as {name}; rules go '
                            'by that name')
                inside = [name for name in names
                          if name.startswith(rule.match + '.')]
                hint = (f'did you mean {rule.match + ".*"!r}?' if inside else
                        did_you_mean(rule.match, names))
                raise ValueError(f'rule pattern {rule.match!r} matches no '
                                 f'layer; {hint}')


@dataclass(frozen=True)
class _Sections:
    weight: Optional[dict] = None
    activation: Optional[dict] = None
    rules: Optional[tuple] = None
    residual: Optional[dict] = None
