#!/usr/bin/env python3
"""Write docs/config.md: every field of a config, from the code itself.

Usage: python docs/config_reference.py
"""
import dataclasses
import inspect
import re
from pathlib import Path

from gdrq_mm import GDRQHook, QuantizedModel
from gdrq_mm.config import ResidualScheme, Rule
from gdrq_mm.quantizers import QUANTIZERS, ActivationScheme, WeightScheme
from gdrq_mm.training import DistillConfig

OUT = Path(__file__).parent / 'config.md'
HEAD = """# Config reference

(Written by `python docs/config_reference.py` from the dataclasses and their
docstrings.)

```python
custom_imports = dict(imports=['gdrq_mm'])
custom_hooks = [
    dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=4, group_size=4),
        activation=dict(bits=4),
        rules=[dict(match='backbone.conv1', weight=dict(bits=8),
                    activation=dict(bits=8)),
               dict(match='head.fc', skip=True)],
        residual=dict(outputs=['backbone.layer*.0'])))
]
```

Every part may be left out: without `weight` weights stay float, without
`activation` activations do, without `products` the products of attention. An
unknown field, a value that is not allowed and a rule that decides nothing are
errors. `gdrq plan CONFIG` shows what a config does to every layer.
"""


VALUE = r"(?:'[^']*'|[-\w.]*\w)"  # as docstrings write it


def arguments_of(doc: str) -> dict:
    """Arguments in a docstring in Google style: argument -> its text."""
    section = re.search(r'^Args:\n(.*?)(?=^\S|\Z)', inspect.cleandoc(doc),
                        re.S | re.M)
    if section is None:
        return {}
    found = re.findall(r'^    (\w+) \((.*?)\): (.*?)(?=^    [\w*]|\Z)',
                       section[1], re.S | re.M)
    return {name: (kind, ' '.join(text.split()))
            for name, kind, text in found}


def fields_of(cls: type) -> dict:
    """Defaults of a dataclass or a callable: field -> its default."""
    if dataclasses.is_dataclass(cls):
        return {field.name: field.default
                for field in dataclasses.fields(cls)}
    return {name: parameter.default for name, parameter in
            inspect.signature(cls).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD}


def table(cls: type, without: tuple = ()) -> str:
    """Markdown of all fields but some: name, type, default, meaning.

    Raises:
        KeyError: A field is not in the docstring.
    """
    lines = ['| field | type | default | meaning |',
             '| ----- | ---- | ------- | ------- |']
    texts = arguments_of(cls.__doc__)
    for name, default in fields_of(cls).items():
        if name in without:
            continue
        kind, text = texts[name]
        shown = 'required' if default in (
            inspect.Parameter.empty, '') else f'`{default!r}`'
        text = re.sub(rf'Defaults to ({VALUE}): ', r'\1: ', text)
        text = re.sub(rf' ?Defaults to {VALUE}\.(?= |$)', '', text)
        text = re.sub(r':class:`[~.\w]*?(\w+)`', r'`\1`', text)
        text = text.replace('``', '`').replace('|', '\\|').strip()
        lines.append(f'| `{name}` | {kind.replace(", optional", "")} | '
                     f'{shown} | {text[:1].upper() + text[1:]} |')
    return '\n'.join(lines) + '\n'


def first_paragraph(thing) -> str:
    return ' '.join(inspect.cleandoc(thing.__doc__).split('\n\n')[0].split())


def page() -> str:
    parts = [HEAD]
    for side, base in (('weight', WeightScheme),
                       ('activation', ActivationScheme)):
        parts.append(f'## `{side}`\n\nWhat all types have in common:\n\n'
                     + table(base))
        for name, pair in QUANTIZERS.items():
            quantizer = getattr(pair, side)
            if quantizer is None:
                continue
            own = table(quantizer.Scheme, ('type', )) \
                if quantizer.Scheme is not base else 'No fields of its own.\n'
            text = first_paragraph(quantizer).replace('``', '`')
            parts.append(f"### `type='{name}'`\n\n{text}\n\n{own}")
    parts.append('## `rules`\n\nA list of dicts; the first one that matches '
                 'a layer wins.\n\n' + table(Rule))
    parts.append('## `residual`\n\nModule outputs that are quantized '
                 'whatever reads them: the fields of `activation` without '
                 '`site`, with 8 bits as the default, and\n\n'
                 + table(ResidualScheme, without=('activation', )))
    parts.append('## `products`\n\nBoth operands of products of activations '
                 'with activations, as attention has them (see '
                 '[method.md](method.md#products-of-attention)): the fields '
                 'of `activation` without `site`. A multiple of a mean would '
                 'cut off the few large attention weights, so leave '
                 "`threshold` of `ScaleClip` at `'mse'`. In rules `match` is "
                 'the name of the module that multiplies.\n')
    parts.append('## `GDRQHook`\n\n' + table(GDRQHook))
    parts.append('## `distill`\n\nAn argument of `GDRQHook`, see '
                 '[method.md](method.md#distillation).\n\n'
                 + table(DistillConfig))
    parts.append('## `QuantizedModel`\n\n' + table(QuantizedModel) +
                 '\nAll other keys are those of the model of that type.\n')
    return '\n'.join(parts)


if __name__ == '__main__':
    OUT.write_text(page())
