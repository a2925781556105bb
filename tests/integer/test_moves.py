"""Clamps and operators that only move values leave no rounding behind."""
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge, to_integer
from gdrq_mm.export import onnx_check
from gdrq_mm.integer.graph import capture
from gdrq_mm.integer.moves import (
    DEQUANTIZE,
    QUANTIZE,
    SPLITS,
    clamp_range,
    code_range,
    move_codes,
    target_of,
)
from gdrq_mm.merge.ops import OPS


class Between(nn.Module):
    """Something between two convolutions."""

    def __init__(self, between, channels=8):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(channels, 8, 1)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def integer_of(between, channels=8, x=None):
    torch.manual_seed(0)
    x = 3 * torch.randn(1, 3, 8, 8) if x is None else x
    model = Between(between, channels)
    # A threshold that may lie beyond what a clamp lets pass.
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4, threshold='nonzero')))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    return merged, to_integer(merged, x), x


def shuffle(x):
    return x.view(1, 2, 4, 8, 8).transpose(1, 2).reshape(x.shape)


MOVES = dict(
    relu6=F.relu6, hardtanh=F.hardtanh, small=lambda x: x.clamp(0, .1),
    two=lambda x: torch.clamp_max(F.relu(x), .1),
    pad=lambda x: F.pad(F.relu(x), (1, 2, 0, 1)),
    pad_signed=lambda x: F.pad(x, (0, 1)),
    reflect=lambda x: F.pad(x, (1, 1, 1, 1), mode='reflect'),
    roll=lambda x: torch.roll(x, (1, 2), (2, 3)), shuffle=shuffle,
    slice=lambda x: x[:, :, 1:, ::2],
    stack=lambda x: torch.stack([x], 2).flatten(1, 2),
    index=lambda x: x[:, :, torch.tensor([1, 0, 5])],
    index_select=lambda x: x.index_select(1, torch.tensor([*range(8)][::-1])),
    take_along_dim=lambda x: torch.take_along_dim(
        x, torch.tensor([3, 3, 0]).view(1, 1, 1, 3), 3),
    windows=lambda x: x.view(1, 8, 2, 4, 8).permute(0, 2, 1, 3, 4).reshape(
        2, 8, 4, 8))


@torch.no_grad()
@pytest.mark.parametrize('name', MOVES)
def test_moved_and_clamped_values_keep_their_codes(name, tmp_path):
    merged, integer, x = integer_of(MOVES[name])
    hidden = [call for call in integer.calls if call.layer == 'first']
    absorbed = name != 'hardtanh'
    # The reader's own grid, of 4 bits, not an added one of 8.
    assert [call.added for call in hidden] == [not absorbed]
    if absorbed:
        codes = merged.second.grid.quantize(MOVES[name](merged.first(x)))
        node, = [node for node in integer.graph_module.graph.nodes
                 if node.name == hidden[0].node]
        reader = next(n for n in integer.graph_module.graph.nodes
                      if n.name == integer.calls[1].node).args[0]
        values = {}

        class Keep(torch.fx.Interpreter):
            def run_node(self, n):
                values[n] = super().run_node(n)
                return values[n]

        Keep(integer.graph_module).run(x)
        # int32 biases move a code here and there.
        assert (values[reader] != codes).float().mean() < 0.02
        assert node.args[8] <= merged.second.grid.high
    report = export_onnx(integer, x, tmp_path / 'model.onnx')
    assert report.kernels == dict(first='QLinearConv', second='QLinearConv')
    equal, total = report.equal_codes()
    assert equal == total
    torch.testing.assert_close(torch.from_numpy(onnx_check.run(
        onnx_check.session(tmp_path / 'model.onnx'), [x])[0]), integer(x))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.both = nn.Conv2d(8, 8, 1)
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = torch.cat([F.relu(self.left(x)), F.relu6(self.right(x))], 1)
        one, two = self.both(x).chunk(2, 1)
        return self.one(one) + self.two(two)


@torch.no_grad()
def test_concatenations_and_splits_work_on_codes(tmp_path):
    torch.manual_seed(0)
    model, x = Branches(), torch.randn(1, 3, 6, 6)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x)
    added = {call.layer: call.added for call in integer.calls}
    # The two parts of a split have readers of two scales.
    assert added == dict(left=False, right=False, both=True, one=True,
                         two=True)
    split, = [node for node in integer.graph_module.graph.nodes
              if target_of(node) in SPLITS]
    assert code_range(split.args[0]) is not None
    report = export_onnx(integer, x, tmp_path / 'model.onnx')
    equal, total = report.equal_codes()
    assert equal == total and set(report.kernels.values()) == {'QLinearConv'}


@torch.no_grad()
def test_added_grids_end_where_the_clamp_does():
    _, integer, x = integer_of(lambda x: F.pad(F.relu6(x), (1, 1)) + 1)
    first = integer.calls[0]
    assert first.added and first.grid.low == 0
    assert first.grid.high * first.grid.scale <= 6 + first.grid.scale / 2


@torch.no_grad()
@pytest.mark.parametrize('mode, value, moves', [
    ('constant', 0., True), ('constant', None, True),
    ('constant', .7, False), ('reflect', None, True)])
def test_padding_moves_values_unless_it_brings_one(mode, value, moves):
    merged, integer, x = integer_of(
        lambda x: F.pad(x, (1, 1, 0, 0), mode, value))
    first = integer.calls[0]
    assert first.layer == 'first'
    # Values that are only moved are rounded once, to the reader's codes.
    assert (first.grid == merged.second.grid) is moves
    assert (integer(x) - merged(x)).abs().mean() < .025


INF = float('inf')


@pytest.mark.parametrize('function, expected', [
    (F.relu, (0, INF)), (F.relu6, (0, 6)), (F.hardtanh, (-1, 1)),
    (lambda x: F.hardtanh(x, 0., 2.), (0, 2)),
    (lambda x: x.clamp(-1., 3.), (-1, 3)),
    (lambda x: x.clamp(-1., 0.), (-1, 0)),
    (lambda x: x.clamp(min=0.), (0, INF)),
    (lambda x: x.clamp(max=2.), (-INF, 2)),
    (lambda x: torch.clamp_min(x, -2.), (-2, INF)),
    (lambda x: torch.clamp_max(x, 0.), (-INF, 0)),
    # Zero would not stay zero.
    (lambda x: x.clamp(1., 2.), None), (lambda x: x.clamp(-2., -1.), None),
    (torch.sigmoid, None)])
def test_what_an_activation_lets_through(function, expected):
    class Module(nn.Module):
        def forward(self, x):
            return function(x)

    graph = capture(Module(), (torch.randn(3), )).graph
    node, = [node for node in graph.nodes if node.op == 'call_function']
    assert clamp_range(node) == expected


# -- single operators ---------------------------------------------------------

class OnGrid(nn.Module):
    """Functions of a value on one grid, and of one on another."""

    def __init__(self, functions):
        super().__init__()
        self.functions = functions

    def forward(self, x):
        values = [OPS.dequantize(OPS.quantize(x + number, *grid), *grid[:2])
                  for number, grid in enumerate((COARSE, FINE))]
        return [function(*values) for function in self.functions]


COARSE, FINE = (.5, -2, 5), (.25, -2, 5)
MOVE_ONLY = [
    lambda x: x.view(1, 2, 2, 6, 6), lambda x: x.flatten(1),
    lambda x: x.transpose(1, 2), lambda x: x.flip(3), lambda x: x[:, 1],
    lambda x: x[:, :, 1::2], lambda x: x[:, :1].squeeze(1).unsqueeze(0),
    lambda x: x[:, :1].expand(1, 5, 6, 6), lambda x: x.repeat(2, 1, 1, 1),
    lambda x: x.roll(2, 3), lambda x: F.pixel_shuffle(x, 2),
    lambda x: F.interpolate(x, scale_factor=2, mode='nearest'),
    lambda x: F.max_pool2d(x, 2), lambda x: F.pad(x, (1, 0, 2, 1)),
    lambda x: F.pad(x, (1, 0), 'constant', 0.),
    lambda x: F.pad(F.pad(x, (1, 2)).flip(2), (0, 0, 1, 1)),
    lambda x: F.pad(x, (1, 1, 1, 1), 'reflect'),
    lambda x: F.pad(x, (0, 2, 0, 0), 'circular'),
    lambda x: torch.cat([x, x.flip(1), x[:, :1]], 1),
    lambda x: torch.stack([x, x.flip(1)], 1),
    lambda x: x[:, torch.tensor([2, 0])],
    lambda x: x[:, :, torch.tensor([2, 0]), torch.tensor([1, 1])],
    lambda x: x.index_select(3, torch.tensor([2, 0])),
    lambda x: torch.take_along_dim(x, torch.ones(1, 1, 1, 1).long(), 2),
    lambda x: F.pad(torch.cat([x, x.flip(1)], 1), (1, 1)),
    lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    lambda x: tuple(each.flip(1) for each in x.split([1, 3], 1))]
OTHERS = [
    lambda x, y: torch.sigmoid(x), lambda x, y: F.pad(x, (1, 1), value=.7),
    lambda x, y: x.max(1), lambda x, y: x.topk(2, 1),
    lambda x, y: torch.cat([x, y], 1), lambda x, y: torch.stack([x, y], 1),
    lambda x, y: torch.cat([x, x.exp()], 1),
    lambda x, y: F.pad(torch.cat([x.exp(), x.sin()], 1), (1, 1)),
    lambda x, y: tuple(each + 1 for each in x.exp().split(2, 1))]


def on_codes(functions):
    """The nodes of a graph whose codes were moved: the results are those of
    before."""
    x = 3 * torch.randn(1, 4, 6, 6)
    module = capture(OnGrid(functions), (x, ))
    expected = module(x)
    move_codes(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    return list(module.graph.nodes)


def test_operators_that_only_move_values_read_codes():
    nodes = on_codes([lambda x, y, function=function: function(x)
                      for function in MOVE_ONLY])
    for node in nodes:
        if target_of(node) is DEQUANTIZE:
            codes, *grid = node.args
            assert tuple(grid) == COARSE[:2]
            assert code_range(codes) == COARSE[1:]
            assert all(user.op == 'output' for user in node.users)
    targets = [target_of(node) for node in nodes]
    # One split, however many parts of it are read.
    assert sum(target in SPLITS for target in targets) == 2
    # Zeros have a code of their own, which depends on the least one.
    padded = [node for node in nodes
              if target_of(node) is OPS.pad_codes.default]
    assert [node.args[2] for node in padded] == 5 * [COARSE[1]]
    assert targets.count(torch.ops.aten.pad.default) == 2


def test_other_operators_read_values():
    values = [node for node in on_codes(OTHERS)
              if target_of(node) is DEQUANTIZE]
    assert len(values) == 2
    assert all(user.op != 'output' for node in values for user in node.users)


class Rounded(nn.Module):
    """What a function gives, rounded; of several results the first."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        first, *others = self.function(x)
        return OPS.quantize(first, *COARSE), *others


@pytest.mark.parametrize('function, first', [
    # Rounded before it is moved: what gives the value.
    (lambda x: [x.exp().flip(2)], [torch.ops.aten.exp.default]),
    (lambda x: [F.pad(x.exp().view(1, 2, 2, 6, 6).flip(2), (1, 1))],
     [torch.ops.aten.exp.default]),
    (lambda x: [torch.cat([x.exp(), x.sin()], 1)],
     [torch.ops.aten.exp.default, torch.ops.aten.sin.default]),
    (lambda x: [torch.cat([y := x.exp(), y, x], 1), x.sin()],
     [None, torch.ops.aten.exp.default]),
    # Others read the value, before or behind the move; it is no move.
    (lambda x: [(y := x.exp()).flip(2), y], [torch.ops.aten.flip.default]),
    (lambda x: [y := x.exp().flip(2), y], [torch.ops.aten.flip.default]),
    (lambda x: [x.exp()], [torch.ops.aten.exp.default]),
    (lambda x: [x.exp().split(2, 1)[1]], [operator.getitem])])
def test_values_are_rounded_before_they_are_moved_by_all(function, first):
    model, x = Rounded(function), torch.randn(1, 4, 6, 6)
    module = capture(model, (x, ))
    torch.testing.assert_close(module(x), model(x), rtol=0, atol=0)
    rounded = [target_of(node.args[0]) for node in module.graph.nodes
               if target_of(node) is QUANTIZE]
    assert sorted(rounded, key=str) == sorted(first, key=str)
