"""Distillation: a quantized model learns from the float one that it was.

Outputs of the same modules in both models, on the same batch, are compared
(Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015).
The teacher runs no further than the last of these outputs, without gradient
and in eval mode. What a model computes from its own proposals, boxes above
all, the teacher computes from those of the student.
"""
from contextlib import ExitStack
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .distill_outputs import Branch, DistillConfig, Output, divergence

Calls = Dict[str, List[Any]]  # module name -> what each call gave


class _AllSeen(Exception):
    """The teacher has computed what is asked of it."""


class Distillation:
    """Adds distillation losses to those that a model computes.

    Between :meth:`start` and :meth:`stop` the model returns them whenever it
    returns a dict of losses. Outside it carries nothing of this: it can be
    copied, saved and evaluated as always.

    Args:
        student (nn.Module): The quantized model.
        teacher (nn.Module): The float one; put in eval mode for good.
        outputs (sequence[Output]): What to compare.
        config (DistillConfig): Weight and temperature.
        branches (sequence[Branch]): Parts of the model that work on the
            student's proposals. Defaults to none.

    Examples:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(2, 3)
        ...     def forward(self, x):
        ...         return dict(loss=self.fc(x).sum())
        >>> student, teacher = Net(), Net()
        >>> distillation = Distillation(student, teacher, [
        ...     Output('cls', ('fc', ), 'softmax')], DistillConfig())
        >>> distillation.start()
        >>> list(student(torch.ones(4, 2)))
        ['loss', 'loss_distill_cls']
        >>> distillation.stop()
    """

    def __init__(self, student: nn.Module, teacher: nn.Module,
                 outputs: Sequence[Output], config: DistillConfig,
                 branches: Sequence[Branch] = ()) -> None:
        self.student = student
        self.teacher = teacher
        teacher.eval()  # returns nothing in some models
        teacher.requires_grad_(False)
        self.outputs = list(outputs)
        self.config = config
        self._names = [name for output in outputs for name in output.modules]
        self.branches = [branch for branch in branches
                         if any(map(branch.holds, self._names))]
        self.has_taught = False  # the model has returned the losses
        self._hooks: Optional[ExitStack] = None
        self._calls: Calls = {}
        self._proposals: Calls = {}

    def start(self) -> None:
        """Let the model return the losses."""
        self.stop()
        # All are found before one gets a hook.
        heads, firsts = ({name: self.student.get_submodule(name)
                          for name in names}
                         for names in (self._names, self._first_modules()))
        self._hooks = hooks = ExitStack()

        def keep(name: str) -> Callable:
            def hook(module, args, output):
                _check_tensor(name, output)
                self._calls[name].append((output, output._version))
            return hook

        def keep_proposals(name: str) -> Callable:
            def hook(module, args):
                self._proposals[name].append(args[1:])
            return hook

        for handle in (
                self.student.register_forward_pre_hook(
                    lambda *_: self._forget()),
                self.student.register_forward_hook(
                    self._add_losses, with_kwargs=True),
                *(head.register_forward_hook(keep(name))
                  for name, head in heads.items()),
                *(first.register_forward_pre_hook(keep_proposals(name))
                  for name, first in firsts.items())):
            hooks.callback(handle.remove)

    def stop(self) -> None:
        """Leave the model as it was."""
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
        self._forget()

    def _first_modules(self) -> List[str]:
        return [branch.modules[0] for branch in self.branches]

    def _forget(self) -> None:
        self._calls = {name: [] for name in self._names}
        self._proposals = {name: [] for name in self._first_modules()}

    def _add_losses(self, model, args, kwargs, losses):
        if not isinstance(losses, dict):
            return losses
        ours, proposals = self._calls, self._proposals
        self._forget()
        self.has_taught = True
        for name, calls in ours.items():
            _check_calls(name, calls)
        theirs = self._teach(args, kwargs, {
            name: len(calls) for name, calls in ours.items()}, proposals)
        found = {f'loss_distill_{output.label}': self.config.weight
                 * output.weight * self._compare(output, ours, theirs)
                 for output in self.outputs}
        return type(losses)({**losses, **found})

    def _compare(self, output: Output, ours: Calls, theirs: Calls) -> Tensor:
        """Over all calls of the modules of an output."""
        for name in output.modules:
            for (student, _), teacher in zip(ours[name], theirs[name]):
                if student.shape != teacher.shape:
                    raise RuntimeError(
                        f'distill: the output of {name} has the shape '
                        f'{tuple(student.shape)}, that of the teacher '
                        f'{tuple(teacher.shape)}; compare modules that get '
                        'inputs of one shape in both')
        module = self.student.get_submodule(output.modules[0])
        last = isinstance(module, nn.Linear)
        if output.kind == 'softmax' and not isinstance(
                module, (nn.Linear, nn.modules.conv._ConvNd)):
            _check_classes(output, ours)
        return divergence(
            output.kind,
            [each for name in output.modules for each, _ in ours[name]],
            [each for name in output.modules for each in theirs[name]],
            self.config.temperature, -1 if last else 1, output.classes)

    @torch.no_grad()
    def _teach(self, args: tuple, kwargs: dict, wanted: Dict[str, int],
               proposals: Calls) -> Calls:
        """Outputs of the teacher on the student's inputs and proposals."""
        # What the model itself must reach.
        first = {name: number for name, number in wanted.items()
                 if not any(branch.holds(name) for branch in self.branches)}
        for branch in self.branches:
            first.setdefault(branch.features, 1)
        found: Calls = {name: [] for name in (*wanted, *first)}
        stops = [True]

        def keep(name: str) -> Callable:
            def hook(module, args, output):
                found[name].append(output)
                if stops[0] and all(len(found[each]) >= number
                                    for each, number in first.items()):
                    raise _AllSeen
            return hook

        # The student draws the same random numbers as without a teacher.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() \
            else []
        with ExitStack() as hooks, torch.random.fork_rng(devices):
            for name in found:
                handle = self.teacher.get_submodule(
                    name).register_forward_hook(keep(name))
                hooks.callback(handle.remove)
            try:
                self.teacher(*args, **kwargs)
            except _AllSeen:
                pass
            stops[0] = False
            for name in wanted.keys() - first.keys():
                found[name].clear()  # from proposals of its own
            for branch in self.branches:
                self._run_branch(branch, found, proposals)
        for name, number in wanted.items():
            if len(found[name]) != number:
                raise RuntimeError(
                    f'distill: the teacher has called {name} '
                    f'{len(found[name])} times, the model {number} times; '
                    'compare other outputs')
        return found

    def _run_branch(self, branch: Branch, found: Calls,
                    proposals: Calls) -> None:
        first, *others = map(self.teacher.get_submodule, branch.modules)
        features = found[branch.features][0]
        for inputs in proposals[branch.modules[0]]:
            x = first(features[:getattr(first, 'num_inputs', None)], *inputs)
            for module in others:
                x = module(x)


def _check_tensor(name: str, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise RuntimeError(
            f'distill: {name} returns a {type(output).__name__}, only tensors '
            'are compared; name the modules in it that return one')


def _check_classes(output: Output, ours: Calls) -> None:
    """Raise where the second or the last of three dimensions may be those
    of classes."""
    for name in output.modules:
        for found, _ in ours[name]:
            if found.dim() == 3:
                raise RuntimeError(
                    f'distill: {name} returns the shape '
                    f'{tuple(found.shape)}, of which it is not known where '
                    'the classes are; name the linear layer in it, whose '
                    'last dimension holds them, in distill.outputs')


def _check_calls(name: str, calls: List[Tuple[Tensor, int]]) -> None:
    if not calls:
        raise RuntimeError(
            f'distill: {name} was not called while the model computed its '
            'losses; name modules that are in distill.outputs')
    for output, version in calls:
        if not output.requires_grad:
            raise RuntimeError(
                f'distill: the output of {name} has no gradient, so that '
                'nothing would learn from it; name another module in '
                'distill.outputs')
        if output._version != version:
            raise RuntimeError(
                f'distill: the output of {name} is changed in place after '
                'it; name the module that changes it in distill.outputs')
