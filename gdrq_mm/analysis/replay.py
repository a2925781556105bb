"""Outputs of the modules that run before a layer, computed once.

What comes before the one layer that a measurement changes stays as it is.
So the calls that are over when that layer begins are not repeated: their
outputs are kept and returned, those of outer modules before those of inner
ones (a backbone rather than its layers).
"""
from contextlib import ExitStack, contextmanager
from typing import Callable, Dict, Iterable, List, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map


class Call(NamedTuple):
    """One call of a module.

    Args:
        name (str): The module.
        begin (int): When it began, counted in beginnings and ends of calls.
        end (int): When it ended.
        plain (bool): Whether it returned tensors and numbers only.
    """
    name: str
    begin: int
    end: int
    plain: bool


@contextmanager
def patched_forwards(modules: Dict[str, nn.Module], wrap: Callable):
    """Replace the ``forward`` of modules by ``wrap(name, forward)``.

    Hooks would miss callers of ``forward`` itself, as mmseg's decode heads.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(_restore, module, vars(module).get('forward'))
            module.forward = wrap(name, module.forward)
        yield


def _restore(module: nn.Module, forward) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def watch_calls(model: nn.Module, forward: Callable) -> List[Call]:
    """All calls of the modules inside ``model`` while ``forward`` runs."""
    calls, clock = [], iter(range(2**62))

    def wrap(name, original):

        def watched(*args, **kwargs):
            begin = next(clock)
            output = original(*args, **kwargs)
            calls.append(Call(name, begin, next(clock), _is_plain(output)))
            return output

        return watched

    with patched_forwards(_inner_modules(model), wrap):
        forward()
    return calls


def repeat_always(calls: List[Call], layers: Iterable[str]) -> List[Call]:
    """The same calls; those of ``layers`` are part of no prefix."""
    layers = set(layers)
    needed = [call for call in calls if call.name in layers]
    return [call._replace(plain=False) if any(
        call.begin <= each.begin and each.end <= call.end for each in needed)
        else call for call in calls]


def _inner_modules(model: nn.Module) -> Dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name}


def _is_plain(output) -> bool:
    return all(value is None or isinstance(value, (Tensor, int, float))
               for value in tree_flatten(output)[0])


def prefix_of(calls: List[Call], layers: Iterable[str]) -> Dict[str, int]:
    """What is over when the first of some layers begins.

    Args:
        calls (list[Call]): From :func:`watch_calls`.
        layers (iterable of str): Names of layers.

    Returns:
        dict[str, int]: Modules and how many of their first calls need not be
        computed; without those inside others that are there.
    """
    layers = set(layers)
    begins = [call.begin for call in calls if call.name in layers]
    over = sorted((call for call in calls if begins and call.plain
                   and call.end < min(begins)), key=lambda call: call.begin)
    prefix, end = {}, -1
    for call in over:
        if call.begin > end:  # not inside the one before
            prefix[call.name] = prefix.get(call.name, 0) + 1
            end = call.end
    return prefix


class Replay:
    """Keep the outputs of a prefix on some batches, and return them.

    Args:
        model (nn.Module): The model.
        calls (list[Call]): Calls of one forward of it.
        forwards (list[callable]): Each runs the model on one batch.
    """

    def __init__(self, model: nn.Module, calls: List[Call],
                 forwards: List[Callable]) -> None:
        self.calls, self.forwards = calls, forwards
        self.modules = _inner_modules(model)
        self._outputs: List[Dict[str, list]] = [{} for _ in forwards]

    def advance(self, layers: Iterable[str]) -> None:
        """Keep what runs before ``layers``, for the model as it is now."""
        prefix = prefix_of(self.calls, layers)
        for batch, forward in enumerate(self.forwards):
            if prefix == {name: len(outputs) for name, outputs in
                          self._outputs[batch].items()}:
                continue
            kept = {name: [] for name in prefix}

            def wrap(name, original, kept=kept):

                def recorded(*args, **kwargs):
                    output = original(*args, **kwargs)
                    kept[name].append(_copy(output))
                    return output

                return recorded

            with self.on(batch), patched_forwards(
                    {name: self.modules[name] for name in prefix}, wrap):
                forward()
            self._outputs[batch] = {
                name: outputs[:prefix[name]]
                for name, outputs in kept.items()}

    @contextmanager
    def on(self, batch: int):
        """Within it, a forward of this batch is spared the prefix."""
        outputs = self._outputs[batch]

        def wrap(name, original):
            left = iter(outputs[name])

            def replayed(*args, **kwargs):
                output = next(left, _NONE)
                return original(*args, **kwargs) if output is _NONE \
                    else _copy(output)

            return replayed

        with patched_forwards(
                {name: self.modules[name] for name in outputs}, wrap):
            yield


_NONE = object()


def _copy(output):
    """What follows may write into it, as ``x += identity`` does."""
    return tree_map(lambda value: value.clone() if isinstance(
        value, torch.Tensor) else value, output)
