"""Messages of errors: the value, what is allowed, a hint."""
import difflib
from typing import Any, Iterable, List


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A hint with the nearest of ``names``, or the first few of them."""
    names = list(names)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return 'did you mean ' + ' or '.join(repr(name) for name in near) + '?'
    shown = ', '.join(repr(name) for name in names[:8])
    return f'allowed: {shown}' + (', ...' if len(names) > 8 else '')


def and_more(names: List[str], kind: str = '', first: int = 5) -> str:
    """The first of ``names``, and how many there are besides.

    Args:
        names (list[str]): One at least.
        kind (str): What they are names of. Defaults to '': it is not said.
        first (int): How many are named. Defaults to 5.

    Examples:
        >>> and_more(['conv1', 'conv2', 'fc'], 'layers', first=1)
        'conv1 and 2 more layers'
    """
    others = len(names) - first
    return ', '.join(names[:first]) + (
        f' and {others} more {kind}'.rstrip() if others > 0 else '')


def check(condition: bool, where: str, value: Any, allowed: str) -> None:
    """Raise a ValueError that says what is allowed."""
    if not condition:
        raise ValueError(f'{where} is {value!r}, allowed: {allowed}')
