"""Patterns of names in a config, and what they match."""
import fnmatch


def match_output(name: str, pattern: str) -> bool:
    """Whether a pattern names a module.

    Modules lie in modules, so ``*``, ``?`` and ``[...]`` stand for a part of
    the name between two dots, unlike in rules, which name layers.

    Examples:
        >>> match_output('backbone.layer1.0', 'backbone.layer*.*')
        True
        >>> match_output('backbone.layer1.0.bn2', 'backbone.layer*.*')
        False
    """
    parts, patterns = name.split('.'), pattern.split('.')
    return len(parts) == len(patterns) and all(
        map(fnmatch.fnmatchcase, parts, patterns))
