"""The ``quantization`` config: schemes and per-layer rules."""
import dataclasses
import fnmatch
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from ..errors import check, did_you_mean
from ..quantizers import ActivationScheme, WeightScheme
from .schemes import (
    ResidualScheme,
    build,
    build_scheme,
    fields_of,
    replace_fields,
)

SIDES = ('weight', 'activation', 'products')


@dataclass(frozen=True)
class Rule:
    """What differs for the layers whose name matches a pattern.

    Args:
        match (str): Layer name or pattern with ``*``, ``?``, ``[...]``.
        skip (bool): Leave these layers float. Defaults to False.
        weight (dict): Fields of :class:`WeightScheme` to replace.
        activation (dict): Fields of :class:`ActivationScheme` to replace.
        products (dict): The same for products of activations; ``match`` is
            the name of the module that computes them.
    """
    match: str = ''
    skip: bool = False
    weight: Optional[dict] = None
    activation: Optional[dict] = None
    products: Optional[dict] = None

    def __post_init__(self):
        check(isinstance(self.match, str) and self.match != '', 'rule.match',
              self.match, 'a layer name or a pattern such as "backbone.*"')
        check(isinstance(self.skip, bool), f'rule {self.match!r}: skip',
              self.skip, 'True or False')
        for side in SIDES:
            value = getattr(self, side)
            check(value is None or isinstance(value, dict),
                  f'rule {self.match!r}: {side}', value, 'a dict')
        asked = any(getattr(self, side) for side in SIDES)
        if self.skip and asked:
            raise ValueError(f'rule {self.match!r} both skips its layers and '
                             'gives them bits; keep one of the two')
        if not (self.skip or asked):
            raise ValueError(f'rule {self.match!r} changes nothing; give it '
                             'skip=True, weight=dict(...), '
                             'activation=dict(...) or products=dict(...)')


@dataclass(frozen=True)
class QuantConfig:
    """The whole ``quantization`` config.

    :meth:`from_dict` makes one of the dicts that configs have, and checks it.

    Args:
        weight (WeightScheme): Defaults to float weights.
        activation (ActivationScheme): Defaults to float activations.
        rules (tuple of Rule): Per-layer changes; the first rule
            that matches a layer wins.
        residual (ResidualScheme): Defaults to none: no output is
            quantized.
        products (ActivationScheme): How both operands of products of
            activations with activations are quantized, as attention has
            them. Defaults to float operands.

    Examples:
        >>> config = QuantConfig.from_dict(dict(
        ...     weight=dict(bits=2, group_size=4), activation=dict(bits=4),
        ...     rules=[dict(match='backbone.conv1', weight=dict(bits=8))]))
        >>> config.schemes('backbone.conv1')[0].bits
        8
    """
    weight: WeightScheme = build_scheme('weight', {}, 'weight')
    activation: ActivationScheme = build_scheme('activation', {},
                                                'activation')
    rules: Tuple[Rule, ...] = ()
    residual: ResidualScheme = ResidualScheme()
    products: ActivationScheme = build_scheme('products', {}, 'products')

    @classmethod
    def from_dict(cls, config: Union[dict, 'QuantConfig']) -> 'QuantConfig':
        """Build it from a ``quantization`` dict; one of these is returned as
        it is.

        Raises:
            TypeError: No dict.
            ValueError: An unknown field, a value that is not allowed, or
                options of a side that nothing gives bits.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, dict):
            raise TypeError('quantization must be a dict or a QuantConfig, '
                            f'got {type(config).__name__}')
        for key in config:
            if key not in SECTIONS:
                raise ValueError(f'quantization has no field {key!r}; '
                                 f'{did_you_mean(str(key), SECTIONS)}')
        given = {key: value for key, value in config.items()
                 if value is not None}
        rules = given.get('rules', ())
        check(isinstance(rules, (list, tuple)), 'quantization.rules', rules,
              'a list of dicts')
        self = cls(
            build_scheme('weight', given.get('weight', {}), 'weight'),
            build_scheme('activation', given.get('activation', {}),
                         'activation'),
            tuple(_rule(rule, index) for index, rule in enumerate(rules)),
            ResidualScheme.from_dict(given['residual'])
            if given.get('residual') else ResidualScheme(),
            build_scheme('products', given.get('products', {}), 'products'))
        for rule in self.rules:
            for side in SIDES:  # the values of rules are checked here
                self._apply(rule, side)
        for side in SIDES:
            self._check_bits(side, given.get(side))
        return self

    def _check_bits(self, side: str, given: Any) -> None:
        """Options that no bits follow would leave all of it float unseen."""
        if isinstance(given, dict) and given and 'bits' not in given \
                and not any((getattr(rule, side) or {}).get('bits')
                            for rule in self.rules):
            options = ', '.join(f'{key}={value!r}'
                                for key, value in given.items())
            raise ValueError(
                f'quantization.{side} has {options}, but neither it nor a '
                'rule gives it bits: all would stay float. Add bits, or '
                'bits=None where that is meant')

    def to_dict(self) -> Dict[str, Any]:
        """The config in primitive types; ``from_dict`` gives it back."""
        rules = [{key: dict(value) if isinstance(value, dict) else value
                  for key, value in dataclasses.asdict(rule).items() if value}
                 for rule in self.rules]
        config = dict(weight=dataclasses.asdict(self.weight),
                      activation=dataclasses.asdict(self.activation),
                      rules=rules)
        if self.residual.outputs:
            config['residual'] = self.residual.to_dict()
        if self.products != type(self).products:
            config['products'] = fields_of(self.products, 'products')
        return config

    def with_all_fields(self) -> 'QuantConfig':
        """The same; rules that change a type, or ask for products, say
        what they leave to its defaults."""
        def whole(rule: Rule) -> Rule:
            changed: Dict[str, Any] = {
                side: fields_of(self._apply(rule, side), side)
                for side in SIDES if 'type' in (getattr(rule, side) or {})
                or side == 'products' and rule.products}
            return dataclasses.replace(rule, **changed)

        return dataclasses.replace(self, rules=tuple(map(whole, self.rules)))

    def rule_of(self, name: str) -> Optional[Rule]:
        """The first rule that matches layer ``name``."""
        for rule in self.rules:
            if fnmatch.fnmatchcase(name, rule.match):
                return rule
        return None

    def schemes(self, name: str) -> Tuple[WeightScheme, ActivationScheme]:
        """The schemes of layer ``name``, its rule applied."""
        rule = self.rule_of(name)
        return self._apply(rule, 'weight'), self._apply(rule, 'activation')

    def products_of(self, name: str) -> ActivationScheme:
        """The scheme of products that module ``name`` computes, its rule
        applied."""
        return self._apply(self.rule_of(name), 'products')

    @property
    def has_products(self) -> bool:
        """Whether it says anything of products."""
        return self.products.bits is not None or any(
            rule.products for rule in self.rules)

    @property
    def asks_for_products(self) -> bool:
        """Whether it gives bits to products of some module."""
        return self.products.bits is not None or any(
            (rule.products or {}).get('bits') is not None
            for rule in self.rules)

    def _apply(self, rule: Optional[Rule], side: str) -> Any:
        scheme = getattr(self, side)
        if rule is None:
            return scheme
        if rule.skip:
            return dataclasses.replace(scheme, bits=None)
        return replace_fields(scheme, side, getattr(rule, side) or {},
                              f'rule {rule.match!r}: {side}')

    def for_float_weights(self) -> 'QuantConfig':
        """The same with :meth:`WeightScheme.for_float_weights` everywhere."""
        rules = tuple(
            rule if rule.skip or not rule.weight else dataclasses.replace(
                rule, weight=dataclasses.asdict(
                    self._apply(rule, 'weight').for_float_weights()))
            for rule in self.rules)
        return dataclasses.replace(
            self, weight=self.weight.for_float_weights(), rules=rules)

    def check_rules(self, names: Iterable[str],
                    aliases: Mapping[str, str] = {}) -> None:
        """Every rule must decide something.

        Args:
            names (iterable of str): The layers.
            aliases (mapping): Second names of modules -> their name here.

        Raises:
            ValueError: A pattern matches none of ``names``, or only such that
                an earlier rule decides.
        """
        names = list(names)
        self._check_patterns(names, aliases)
        decided_by = {name: self.rule_of(name) for name in names}
        for rule in self.rules:
            if any(decider is rule for decider in decided_by.values()):
                continue
            first = decided_by[next(name for name in names if
                                    fnmatch.fnmatchcase(name, rule.match))]
            raise ValueError(
                f'rule {rule.match!r} decides nothing: the first rule that '
                f'matches a layer wins, and {first.match!r} stands before '
                'it; put the narrower pattern first')

    def _check_patterns(self, names: List[str],
                        aliases: Mapping[str, str]) -> None:
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


SECTIONS = ('weight', 'activation', 'rules', 'residual', 'products')


def _rule(values, index: int) -> Rule:
    where = f'quantization.rules[{index}]'
    if isinstance(values, Rule):
        return values
    if not isinstance(values, dict):
        raise ValueError(f'{where} is {values!r}, allowed: a dict')
    return build(Rule, values, where)
