"""The page: what is measured, and that a browser shows it."""
import json
import math
import re
import shutil
import subprocess

import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.analysis.layer_figures import find_trouble, measure_layers
from gdrq_mm.analysis.page import Page, curves_section, sensitivity_section
from gdrq_mm.analysis.sensitivity import Figures, Setting
from gdrq_mm.plan import QuantReport
from gdrq_mm.training import calibrate, get_state

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),
                          nn.Flatten(), nn.Linear(128, 4))
    quantize_(model, dict(weight=dict(bits=2, levels='odd'),
                          activation=dict(bits=4)))
    calibrate(model, [lambda: model(torch.rand(2, 3, 8, 8))])
    return model.eval()


def measured(model, *batches):
    return measure_layers(model, [lambda x=x: model(x) for x in batches])


def test_figures_are_those_of_weights_and_inputs(model):
    x = torch.rand(2, 3, 8, 8)
    figures = measured(model, x, x)
    assert list(figures) == ['0', '2', '4']
    layer, found = model[0], figures['0']
    quantized = layer.weight_quantizer(layer.weight)
    assert found.weight.levels == [-1, 0, 1]
    assert found.weight.dead_levels == 0
    assert sum(found.weight.counts) == layer.weight.numel()
    loss = (layer.weight - quantized).abs().sum() / layer.weight.abs().sum()
    assert found.weight.loss == pytest.approx(float(loss))
    assert found.weight.clips == pytest.approx(
        quantized.abs().flatten(1).amax(1).view(2, 4).amax(1).tolist())
    clip = float(layer.input_quantizer.clip)
    assert sum(found.activation.counts) == 2 * x.numel()
    step = clip / 15
    expected = (x > clip + step / 2).sum() / x.count_nonzero()
    assert found.activation.clipped == pytest.approx(float(expected),
                                                     abs=1e-6)
    assert found.activation.levels[0] == 0
    assert len(found.activation.levels) == 16
    json.dumps(found.to_dict())


def test_trouble_is_told_with_its_remedy(model):
    x = torch.rand(2, 3, 8, 8)
    assert find_trouble(measured(model, x).values()) == []
    with torch.no_grad():
        model[0].weight[2] = 0
        model[2].weight.zero_()
        model[4].input_quantizer.clip.mul_(.1)
        model[4].input_quantizer.forget()
    one, dead, clipped = find_trouble(measured(model, x).values())
    assert one.startswith('all weights became one level: 2. ')
    assert dead.startswith('outputs whose weights are all zero: 0 (1). ')
    assert 'more bits by a rule' in dead
    assert clipped.startswith('more than 5% of the inputs are clipped: ')


@pytest.mark.parametrize('scheme', [
    dict(threshold='mse', asymmetric=True), dict(type='LSQPlus')])
@pytest.mark.parametrize('some', [False, True])
def test_inputs_below_zero_are_clipped_where_their_grid_ends(scheme, some):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8)), -torch.rand(64, 8)
    if some:
        x[:, 0] *= -.1
    quantize_(model, dict(weight=dict(bits=4),
                          activation=dict(bits=4, **scheme)))
    calibrate(model, [lambda: model(x)] * 12)
    figures = measured(model, x)
    assert find_trouble(figures.values()) == []
    part = figures['0'].activation
    assert part.levels[0] == -1 and part.levels[-1] < .5
    scale, low, high, zero = model[0].input_quantizer.code_range()
    codes = x / scale + zero
    beyond = (codes > high + .5) | (codes < low - .5)
    assert part.clipped == pytest.approx(float(beyond.float().mean()),
                                         abs=1e-6)


class Attends(nn.Module):

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x, others):
        return self.attention(key=others, value=others, query=x)[0]


def test_inputs_of_attention_are_its_queries():
    torch.manual_seed(0)
    model, x, others = Attends(), torch.randn(3, 2, 8), torch.randn(5, 2, 8)
    quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4)))

    def forward():
        return model(x, 100 * others)

    calibrate(model, [forward] * 12)
    part = measure_layers(model, [forward])['attention'].activation
    assert sum(part.counts) == x.numel() and part.clipped < .2


@pytest.fixture
def page(model, tmp_path):
    figures = measured(model, torch.rand(2, 3, 8, 8))
    report = QuantReport(get_state(model).plans)
    page = Page('a </script> title', report.summary(), report.rows(),
                figures, ['a trouble'], [
        sensitivity_section({
            Setting('2', 'both', 4, 'alone'): Figures(80., .2, .1),
            Setting('0', 'both', 4, 'alone'): Figures(70., .4, .1)}),
        curves_section([dict(step=1, loss=2., gdrq_ql=.1),
                        dict(step=2, loss=1., gdrq_ql=.2)])])
    path = tmp_path / 'page.html'
    page.write(path)
    return path


def test_the_page_is_whole_and_needs_no_network(page):
    text = page.read_text()
    assert 'plotly.js v' in text and '/*DATA*/' not in text
    assert not re.search(r'<(script|link|img)[^>]+(src|href)=', text)
    data = re.search(r'type="application/json">(.*?)</script>', text,
                     re.DOTALL)
    assert json.loads(data[1])['title'] == 'a </script> title'
    with pytest.raises(FileExistsError):
        Page('', '', [], {}).write(page)
    assert page.read_text() == text


def test_what_is_no_number_leaves_the_page_readable(tmp_path):
    nan = math.nan
    text = Page('', '', [], {}, sections=[
        curves_section([dict(step=1, loss=nan), dict(step=2, loss=1.)]),
        sensitivity_section({Setting('2', 'both', 4, 'alone'):
                             Figures(nan, math.inf, nan)})]).html()
    data = re.search(r'type="application/json">(.*?)</script>', text,
                     re.DOTALL)
    curves, bars = json.loads(data[1], parse_constant=pytest.fail)['sections']
    assert curves['plots'][0]['data'][0]['y'] == [None, 1]
    assert bars['plots'][0]['data'][0]['x'] == [None]
    assert bars['plots'][0]['data'][0]['text'] == ['none']


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium: on Debian, '
                    'apt-get install chromium')
def test_a_browser_shows_it(page, tmp_path):
    result = subprocess.run(
        [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu',
         f'--user-data-dir={tmp_path / "profile"}', '--dump-dom',
         '--virtual-time-budget=20000',
         f'file://{page}#layer=2&sort=layer'],
        capture_output=True, text=True, timeout=300)
    dom = result.stdout.partition('id="title"')[2]
    shown = re.sub(r'<script.*?</script>', '', dom, flags=re.DOTALL)
    assert 'a &lt;/script&gt; title' in shown, result.stderr[-2000:]
    assert '<h2 id="layer">2</h2>' in shown
    rows = re.findall(r'<tr(?: class="chosen")?><td>([^<]*)</td>', shown)
    assert rows == ['0', '2', '4']
    assert '<tr class="chosen"><td>2</td>' in shown
    # Three plots of the layer, one of sensitivity, two of training.
    assert len(set(re.findall(r'<div id="(\w+)" class="js-plotly-plot"',
                              shown))) == 6
    assert 'unused, quantized loss' in shown
