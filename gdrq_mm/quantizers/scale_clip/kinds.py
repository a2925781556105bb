"""Which class computes what a scheme asks for."""
from typing import Mapping


def kind_of(cls: type, base: type, kinds: Mapping[str, type], field: str,
            value: str) -> type:
    """The class to build.

    Args:
        cls (type): What the scheme's type is registered with: ``base``, or a
            class of one's own that derives from it.
        base (type): Computes all values of the field that have no kind.
        kinds (Mapping[str, type]): Classes by value of the field.
        field (str): Its name.
        value (str): Its value in the scheme.

    Raises:
        ValueError: A class of one's own derives from that of another value,
            so that it would not be called.
    """
    kind = kinds.get(value, base)
    if cls is base:
        return kind
    parent = next(each for each in cls.__mro__
                  if each is base or each in kinds.values())
    if parent is not kind:
        theirs = [name for name, each in kinds.items() if each is parent]
        raise ValueError(
            f'{field} is {value!r}, which {kind.__name__} computes, but '
            f'{cls.__name__} is a {parent.__name__}; derive it from '
            f'{kind.__name__}, or ask for ' + (
                f'{field}={theirs[0]!r}' if theirs else
                f'another {field} than ' + ' and '.join(map(repr, kinds))))
    return cls
