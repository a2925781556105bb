"""Which modules have their output quantized: patterns -> names."""
from typing import Dict, Iterable, List

from torch import nn

from ..config.patterns import match_output
from ..errors import did_you_mean


def find_outputs(model: nn.Module, patterns: Iterable[str]
                 ) -> Dict[str, nn.Module]:
    """The modules that some patterns name, in the order of the model.

    Args:
        model (nn.Module): The model.
        patterns (iterable of str): See
            :func:`gdrq_mm.config.patterns.match_output`.

    Returns:
        dict[str, nn.Module]: By name; a module that is registered twice, by
        its first one.

    Raises:
        ValueError: A pattern matches no module, or a container of modules.
    """
    names: Dict[nn.Module, List[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            names.setdefault(module, []).append(name)
    for pattern in patterns:
        if not any(match_output(name, pattern)
                   for all_names in names.values() for name in all_names):
            depth = pattern.count('.')
            near = [name for each in names.values() for name in each]
            near.sort(key=lambda name: abs(name.count('.') - depth))
            raise ValueError(
                f'residual.outputs has {pattern!r}, which matches no module '
                '("*" stands for one part of a dotted name); '
                f'{did_you_mean(pattern, near)}')
    found = {all_names[0]: module for module, all_names in names.items()
             if any(match_output(name, pattern) for name in all_names
                    for pattern in patterns)}
    for name, module in found.items():
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            parts = list(module._modules) or ['...']
            raise ValueError(
                f'residual.outputs matches {name}, a '
                f'{type(module).__name__}, which would call a quantizer as '
                'one of its own modules; name the module inside whose output '
                f'it is, such as {name + "." + parts[-1]!r}')
    return found
