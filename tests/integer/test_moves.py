"""Clamps and operators that only move values leave no rounding behind."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge, to_integer
from gdrq_mm.export import onnx_check
from gdrq_mm.integer.graph import capture
from gdrq_mm.integer.moves import (
    SPLITS,
    clamp_range,
    code_range,
    target_of,
)


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
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
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
    assert (integer(x) - merged(x)).abs().mean() < .02


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
