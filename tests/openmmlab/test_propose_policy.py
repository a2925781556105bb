"""Policies from measured sensitivities, on a tiny model."""
import copy
import json

import pytest
import torch

from gdrq_mm.analysis.tables import policy_table
from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.policy import propose_policy

QUANTIZATION = dict(
    weight=dict(bits=2), activation=dict(bits=4),
    rules=[dict(match='head.fc', weight=dict(bits=8),
                activation=dict(bits=8)),
           dict(match='backbone.conv1', skip=True)])


@pytest.fixture
def files(load_config, build_model, tmp_path):
    cfg = load_config('resnet')
    # ResNet-18 has fewer layers to measure.
    cfg.merge_from_dict({'model.backbone.depth': 18,
                         'model.head.in_channels': 32})
    torch.save(dict(state_dict=build_model(copy.deepcopy(cfg)).state_dict()),
               tmp_path / 'float.pth')
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=QUANTIZATION)]
    cfg.custom_imports = dict(imports=['gdrq_mm'])
    cfg.train_cfg.max_epochs = 1
    cfg.dump(str(tmp_path / 'w2a4.py'))
    return [str(tmp_path / name) for name in ('w2a4.py', 'float.pth')]


def test_a_policy_of_equal_size_is_proposed_measured_and_trained(
        files, tmp_path):
    proposal = propose_policy(
        *files, tmp_path / 'kept.json', bits=[2, 8], batches=1,
        calibrated=True, train=str(tmp_path / 'trained'))
    ours, own = proposal.policies
    assert ours.size <= own.size * (1 + 1e-9)
    assert ours.noise <= own.noise
    assert own.choice['head.fc'] == (8, 8)
    assert own.choice['backbone.layer1.0.conv1'] == (2, 4)
    assert {name: bits.activation for name, bits in ours.choice.items()} == {
        name: bits.activation for name, bits in own.choice.items()}
    measured = json.loads((tmp_path / 'kept.json').read_text())['figures']
    inputs = [key for key in measured if ' activation ' in f' {key} ']
    assert len(inputs) == len(own.choice)  # at their own bits alone
    assert 'backbone.conv1' not in ours.choice
    assert ours.calibrated.noise > 0 and own.calibrated.noise > 0
    assert ours.trained is not None and own.trained is not None
    parsed = QuantConfig.from_dict(dict(QUANTIZATION, rules=proposal.rules))
    assert parsed.rule_of('backbone.conv1').skip
    for name, bits in ours.choice.items():
        assert (parsed.schemes(name)[0].bits, parsed.schemes(name)[1].bits
                ) == bits
    assert (tmp_path / 'trained' / 'config' / 'last_checkpoint').exists()
    # Another schedule is another training.
    with pytest.raises(ValueError, match=(
            'trained/proposed has a training of another config')):
        propose_policy(
            *files, tmp_path / 'kept.json', bits=[2, 8], batches=1,
            train=str(tmp_path / 'trained'),
            cfg_options={'train_cfg.max_epochs': 2})
    with pytest.raises(ValueError, match='size=0.0001 cannot be met'):
        propose_policy(*files, tmp_path / 'kept.json', dict(size=1e-4),
                       bits=[2, 8], batches=1)


@pytest.mark.parametrize('side, words', [
    (dict(weight=dict(bits=1)), 'gives the weights of backbone.layer1.0.conv1 '
     '1 bit'),
    (dict(activation=dict(bits=None)), 'leaves the weights or the inputs of '
     'backbone.layer1.0.conv1 float')])
def test_policies_need_bits_to_choose_from(side, words, files, tmp_path):
    rules = [dict(match='backbone.layer1.0.conv1', **side),
             *QUANTIZATION['rules']]
    with pytest.raises(ValueError, match=words):
        propose_policy(*files, tmp_path / 'kept.json', batches=1, cfg_options={
            'custom_hooks': [dict(type='GDRQHook', quantization=dict(
                QUANTIZATION, rules=rules))]})
    assert not (tmp_path / 'kept.json').exists()


def test_layers_that_no_prediction_calls_keep_their_bits(
        load_config, build_model, tmp_path):
    """The noise of an auxiliary head is none, at any bits."""
    cfg = load_config('pspnet')
    torch.save(dict(state_dict=build_model(copy.deepcopy(cfg)).state_dict()),
               tmp_path / 'float.pth')
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=4), activation=dict(bits=4), rules=[
            dict(match='backbone.*', skip=True),
            dict(match='auxiliary_head.conv_seg', weight=dict(bits=8))]))]
    cfg.dump(str(tmp_path / 'w4a4.py'))
    proposal = propose_policy(
        str(tmp_path / 'w4a4.py'), str(tmp_path / 'float.pth'),
        tmp_path / 'kept.json', bits=[2, 4], batches=1)
    found = {name: bits for name, bits in proposal.policies[0].choice.items()
             if name.startswith('auxiliary_head')}
    assert found.pop('auxiliary_head.conv_seg') == (8, 4)
    assert set(found.values()) == {(4, 4)}
    table = policy_table(proposal)
    assert 'does not call these, which keep their bits: auxiliary_' in table
