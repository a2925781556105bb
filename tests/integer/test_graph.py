"""The graph of a merged model."""
import pytest
import torch
from mmcv.ops import DeformConv2dPack
from torch import nn

import gdrq_mm
from gdrq_mm.integer import to_integer
from gdrq_mm.integer.dynamic import check_others
from gdrq_mm.integer.graph import (
    LAYERS,
    capture,
    fold_grids,
    is_sum,
    layer_of,
    target_of,
)
from gdrq_mm.merge import merge
from gdrq_mm.merge.ops import OPS


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.again, self.act = self.conv, self.relu

    def forward(self, x):
        return self.act(self.conv(x)) + self.relu(self.again(2 * x))


class Outer(nn.Module):
    """Every module has two names, or four."""

    def __init__(self):
        super().__init__()
        self.one, self.last = Inner(), nn.Conv2d(3, 3, 1)
        self.two, self.head = self.one, self.last

    def forward(self, x):
        return self.last(self.two(x))


@torch.no_grad()
def test_modules_of_several_names_go_by_the_first():
    torch.manual_seed(0)
    model, x = Outer(), torch.randn(1, 3, 4, 4)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    module = capture(merged, (x, ))
    assert torch.equal(module(x), merged(x))
    layers = [node for node in module.graph.nodes
              if target_of(node) in LAYERS]
    assert [layer_of(node) for node in layers] == ['one.conv', 'one.conv',
                                                   'last']
    names = [name for name, _ in merged.named_modules()]
    for node in module.graph.nodes:
        for name, _ in node.meta.get('nn_module_stack', {}).values():
            assert name in names
    assert sorted(module.state_dict()) == sorted(
        f'{layer}.{key}' for layer in ('one.conv', 'last')
        for key in ('weight', 'w_scale', 'bias'))


def test_parameters_of_several_names_go_by_the_first():
    """Those of float layers; a graph is in eval mode as well."""
    model, x = Outer().eval(), torch.randn(1, 3, 4, 4)
    module = capture(model, (x, ))
    assert torch.equal(module(x), model(x))
    ours, theirs = (dict(each.named_parameters()) for each in (module, model))
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not list(module.buffers())
    assert not any(part.training for part in module.modules())


class Noise(nn.Module):
    def forward(self, x):
        return torch.rand_like(x) - torch.rand_like(x), x.exp() - x.exp()


def test_only_what_gives_the_same_is_computed_once():
    module = capture(Noise(), (torch.randn(1, 8), ))
    noise, nothing = module(torch.randn(1, 8))
    assert noise.abs().min() > 0 and nothing.abs().max() == 0
    targets = [target_of(node) for node in module.graph.nodes]
    assert targets.count(torch.ops.aten.exp.default) == 1


class Counters(nn.Module):
    """Buffers that are equal at first, and one that is written to."""

    def __init__(self):
        super().__init__()
        for name in 'abc':
            self.register_buffer(name, torch.zeros(1))

    def forward(self, x):
        results = self.a + x, self.b + x, self.c + x
        self.a.add_(1)
        return results


def test_buffers_that_are_written_to_stand_for_themselves():
    model, x = Counters(), torch.ones(1)
    module = capture(model, (x, ))
    assert [[float(value) for value in module(x)] for _ in range(2)] == [
        [1, 1, 1], [2, 1, 1]]


class Deciding(nn.Module):
    """Looks at values, of which a graph has none."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class WritesToItsInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, image):
        image[:, :1].sub_(.5)
        return self.conv(image)


@torch.no_grad()
def test_a_model_that_writes_to_its_input_is_refused():
    """What it is compared with would have been changed before."""
    with pytest.raises(RuntimeError, match=r'its input in place \(image\), '
                                           'which no file does'):
        capture(WritesToItsInput(), (torch.rand(1, 3, 4, 4), ))


def test_a_layer_without_a_graph_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Deciding()))
    x = torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    with torch.no_grad():
        gdrq_mm.calibrate(model, [lambda: model(x)])
        with pytest.raises(RuntimeError, match='no graph: in 1.0: .*--raw'):
            to_integer(merge(model.eval(), x), x)


class Refusing(nn.Module):
    """Raises where a model has no graph."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error.with_traceback(None)  # it is raised in many tests


RAW = ('wrap the model in a module that leaves it out, or, where it is '
       'post-processing, export what comes before it (--raw, or '
       'make_deployable(..., raw=True))')


@pytest.mark.parametrize('error, reason', [
    (ValueError('of an odd width\nat all'), 'of an odd width'),
    (NotImplementedError(), 'NotImplementedError')])
@pytest.mark.parametrize('depth, place', [(0, ''), (1, 'in 0: '),
                                          (2, 'in 0.0: ')])
@pytest.mark.parametrize('dynamic, graph, remedy', [
    ([], 'no graph', RAW),
    (['batch', 'size'], 'no graph with dynamic batch and size',
     'export it with a fixed one')])
def test_errors_tell_the_layer_the_reason_and_what_to_do(
        error, reason, depth, place, dynamic, graph, remedy):
    model = Refusing(error)
    for _ in range(depth):
        model = nn.Sequential(model)
    with pytest.raises(RuntimeError) as caught:
        capture(model, (torch.randn(1, 3, 4, 4), ), dynamic)
    assert str(caught.value) == \
        f'the model has {graph}: {place}{reason}; {remedy}'


@torch.no_grad()
def test_a_kernel_that_no_graph_holds_is_named():
    """There is no way out by --raw."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(
        DeformConv2dPack(4, 4, 3)))
    with pytest.raises(RuntimeError, match='no graph: in 1.0: mmcv.ops.deform_'
                       'conv is a kernel that no graph holds; train with a '
                       'layer of torch in its place') as caught:
        capture(model, (torch.randn(1, 3, 6, 6), ))
    assert '--raw' not in str(caught.value)


def test_a_method_of_a_model_that_is_no_layer_is_named():
    model = nn.Module()
    inner = Refusing(ValueError('of an odd width'))
    model.forward = lambda x: inner(x)
    with pytest.raises(RuntimeError, match='no graph: in Refusing.forward: '
                       'of an odd width; wrap the model'):
        capture(model, (torch.randn(1, 3, 4, 4), ))


class Places(nn.Module):
    """Adds the place of every feature, as priors are made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 8, 1)

    def forward(self, x):
        y = self.conv(x)
        rows, columns = torch.meshgrid(*map(torch.arange, y.shape[2:]))
        return y.flatten(2) + rows.reshape(-1) + 10 * columns.reshape(-1)


@torch.no_grad()
@pytest.mark.parametrize('dynamic, shape', [
    ([], (1, 3, 20, 36)), (['batch'], (3, 3, 20, 36)),
    (['size'], (1, 3, 44, 17)), (['batch', 'size'], (2, 3, 29, 70))])
@pytest.mark.filterwarnings('ignore:torch.meshgrid')
def test_a_graph_takes_what_is_dynamic(dynamic, shape):
    model = Places().eval()
    module = capture(model, (torch.randn(1, 3, 20, 36), ), dynamic)
    x = torch.randn(shape)
    torch.testing.assert_close(module(x), model(x))


@pytest.mark.filterwarnings('ignore:torch.meshgrid')
def test_what_cannot_be_dynamic_is_refused():
    model, x = Places().eval(), torch.randn(1, 3, 10, 32)
    with pytest.raises(ValueError, match="dynamic has 'depth', allowed: "
                                         'batch, size'):
        capture(model, (x, ), ['depth'])
    with pytest.raises(ValueError, match="dynamic is 'batch', allowed: a "
                                         'list of batch, size'):
        capture(model, (x, ), 'batch')
    with pytest.raises(RuntimeError, match='at least 9 pixels a side'):
        capture(model, (x, ), ['size'])  # .75 of 10 is one row
    capture(model, (x, ), ['batch'])


class Doubled(nn.Module):
    """Computes a size with numbers of Python, as mmseg's Upsample does."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x):
        size = [int(length * 2.) for length in x.shape[2:]]
        y = nn.functional.interpolate(x, size)
        return self.outputs(x, y)


@torch.no_grad()
@pytest.mark.parametrize('outputs, differs', [
    (lambda x, y: (x, y), 1), (lambda x, y: y.sum((2, 3)), 0)])
def test_a_graph_that_kept_the_size_of_the_example_is_refused(
        outputs, differs):
    model, x = Doubled(outputs).eval(), torch.rand(1, 3, 20, 32)
    torch.testing.assert_close(capture(model, (x, ))(x), model(x))
    with pytest.raises(RuntimeError, match='for images of 1 x 3 x 20 x 32 '
                       f'output {differs} of the graph is not that of the '
                       'model; something computes with a .* of its own: '
                       'export with a fixed one'):
        capture(model, (x, ), ['size'])


class Branches(nn.Module):
    """Has a way of its own for some batches and sizes."""

    def __init__(self, changes, apply):
        super().__init__()
        self.changes, self.apply_ = changes, apply

    def forward(self, x):
        return self.apply_(x) if self.changes(*x.shape) else 2 * x


@pytest.mark.parametrize('changes, apply, shape, dynamic', [
    (lambda n, c, h, w: h % 2, lambda x: x[:, :, :-1], (1, 3, 64, 64),
     'size'),
    (lambda n, c, h, w: h % 2 == 0, lambda x: x[:, :, :-1], (1, 3, 64, 64),
     'size'),
    (lambda n, c, h, w: h > w, lambda x: x + 1, (1, 3, 48, 80), 'size'),
    (lambda n, c, h, w: w == 80, lambda x: x + 1, (1, 3, 48, 80), 'size'),
    (lambda n, c, h, w: n > 1, lambda x: x - x.mean(0, keepdim=True),
     (1, 3, 32, 32), 'batch'),
    (lambda n, c, h, w: n == 1, lambda x: x + 1, (2, 3, 32, 32), 'batch')])
def test_a_graph_of_another_way_than_the_examples_is_refused(
        changes, apply, shape, dynamic):
    model, x = Branches(changes, apply).eval(), torch.randn(shape)
    torch.testing.assert_close(capture(model, (x, ))(x), model(x))
    with pytest.raises(RuntimeError, match='of the graph is not that of the '
                       'model; .*export with a fixed one'):
        capture(model, (x, ), [dynamic])


def test_a_graph_that_fails_for_other_sizes_is_refused():
    x = torch.rand(1, 3, 20, 32)
    with pytest.raises(RuntimeError, match='for images of 1 x 3 x 20 x 32 the '
                       r'graph fails \(.*fixed one'):
        check_others(nn.Linear(31, 1), nn.Linear(32, 1), [(x, )])


class Ends(nn.Module):
    """Ends of clamps and numbers of points, as codes write them."""

    def forward(self, x):
        points = torch.linspace(0., 1., 5)
        return (x.clamp(-1, 1.5), x.clamp(min=-1), (4 * x).long().clamp(0, 3),
                x.flatten(1).sum() + points)


def test_numbers_in_graphs_are_of_the_types_that_they_had():
    model, x = Ends(), 2 * torch.randn(1, 3, 4, 4)
    for ours, theirs in zip(capture(model, (x, ))(x), model(x)):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def quantize_again(scale, low, high):
    """A graph that quantizes what was quantized to codes of -2 to 5."""
    graph = torch.fx.Graph()
    x = graph.placeholder('x')
    codes = graph.call_function(OPS.quantize.default, (x, .5, -2, 5))
    value = graph.call_function(OPS.dequantize.default, (codes, .5, -2))
    again = graph.call_function(OPS.quantize.default,
                                (value, scale, low, high))
    graph.output(graph.call_function(OPS.dequantize.default,
                                     (again, scale, low)))
    return torch.fx.GraphModule({}, graph)


@pytest.mark.parametrize('grid, stays', [
    ((.5, -2, 5), False), ((.5, -2, 6), False), ((.5, -2, 4), True),
    ((.5, -1, 5), True), ((.25, -2, 5), True)])
def test_a_quantizer_goes_only_where_it_changes_nothing(grid, stays):
    module, x = quantize_again(*grid), torch.randn(100) * 2
    expected = module(x)
    fold_grids(module.graph)
    module.recompile()
    assert torch.equal(module(x), expected)
    assert sum(target_of(node) is OPS.quantize.default
               for node in module.graph.nodes) == 1 + stays


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.one(x) + self.two(x)


@torch.no_grad()
@pytest.mark.parametrize('changed, calls', [('nothing', 1), ('bias', 2),
                                            ('weight', 2)])
def test_layers_of_equal_weights_on_one_input_are_one_call(changed, calls):
    torch.manual_seed(0)
    model, x = Twins(), torch.randn(1, 3, 4, 4)
    model.two.load_state_dict(model.one.state_dict())
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    if changed == 'weight':
        merged.two.weight[0, 0] = 5 - merged.two.weight[0, 0]
    elif changed == 'bias':
        merged.two.bias += 1
    module = capture(merged, (x, ))
    assert torch.equal(module(x), merged(x))
    assert sum(target_of(node) in LAYERS
               for node in module.graph.nodes) == calls


def test_equal_quantizers_of_a_value_are_one():
    graph = torch.fx.Graph()
    x = graph.placeholder('x')
    codes = [graph.call_function(OPS.quantize.default, (x, scale, -2, 5))
             for scale in (.5, .5, .25)]
    graph.output(tuple(codes))
    module, x = torch.fx.GraphModule({}, graph), torch.randn(50)
    expected = module(x)
    fold_grids(graph)
    module.recompile()
    for ours, theirs in zip(module(x), expected):
        assert torch.equal(ours, theirs)
    assert sum(target_of(node) is OPS.quantize.default
               for node in graph.nodes) == 2


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        one, two = self.one(x), self.two(2 * x)
        return (one + two, one + x, one + 1, torch.add(one, two, alpha=2),
                one.relu() + two.flip(2), one.sigmoid() + two,
                one + (two + one.relu()).relu(), one + (two + x),
                one + two.mean() * one)


@torch.no_grad()
def test_sums_are_those_of_what_layers_gave():
    torch.manual_seed(0)
    model, x = Sums(), torch.randn(1, 3, 4, 4)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    module = capture(merge(model.eval(), x), (x, ))
    output, = [node for node in module.graph.nodes if node.op == 'output']
    assert [is_sum(node) for node in output.args[0]] == [
        True, False, False, False, True, False, True, False, False]


class ChannelsLast(nn.Module):
    """Memory is laid out as the normalization wants it."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(4), nn.Conv2d(4, 4, 1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(2), nn.Linear(16, 3)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.pool(self.conv(x) + x).flatten(1))


@torch.no_grad()
def test_a_graph_computes_whatever_strides_its_trace_had():
    torch.manual_seed(0)
    model, x = ChannelsLast(), torch.randn(2, 4, 6, 6)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert torch.equal(capture(merged, (x, ))(x), merged(x))
    to_integer(merged, x)(x)
