import pytest
from torch import nn

import gdrq_mm
from gdrq_mm.config.patterns import match_output
from gdrq_mm.plan import find_outputs


@pytest.fixture
def model():
    block = nn.ModuleDict(dict(conv=nn.Conv2d(3, 3, 1), relu=nn.ReLU()))
    return nn.ModuleDict(dict(stem=nn.Conv2d(3, 3, 1), again=block['relu'],
                              layer1=nn.Sequential(block)))


def test_an_asterisk_stands_for_one_part_of_a_name():
    assert match_output('backbone.layer1.0', 'backbone.layer?.[01]')
    assert not match_output('backbone.layer1.0.bn2', 'backbone.layer*.*')
    assert not match_output('backbone', '*.*')


def test_modules_are_found_in_order_and_by_their_first_name(model):
    found = find_outputs(model, ['layer1.*.relu', 'stem'])
    assert list(found) == ['stem', 'again']
    assert found['again'] is model['layer1'][0]['relu']


def test_a_pattern_without_a_module_names_the_nearest(model):
    with pytest.raises(ValueError, match="'layer1.0.rely', which matches no "
                       "module .*did you mean 'layer1.0.relu'"):
        find_outputs(model, ['stem', 'layer1.0.rely'])


def test_containers_are_refused_with_what_to_name_instead(model):
    with pytest.raises(ValueError, match="layer1, a Sequential.*'layer1.0'"):
        find_outputs(model, ['layer*'])


def test_the_report_lists_outputs_and_counts_no_weight_twice(model):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    quantization = dict(weight=dict(bits=4), activation=dict(bits=4))
    before = gdrq_mm.quantize_(nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), quantization)
    report = gdrq_mm.quantize_(model, dict(
        quantization, residual=dict(outputs=['*'])))
    assert report.totals() == before.totals()
    assert report.policy() == before.policy()
    row = report.rows()[-1]
    assert (row['layer'], row['type'], row['a bits'], row['w bits']) == (
        '1.output_quantizer', 'BatchNorm2d', 8, '')
    assert len(report.rows()) == 3 and 'residual' in str(report)
