"""Every cell of the paper's tables has a config that does what it says."""
import copy
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from cells import (
    CELLS,
    FASTER_RCNN,
    FIRST_AND_LAST,
    FLOAT_CIFAR,
    NUM_LAYERS,
    PSPNET,
    RESNET_50,
    SKIPPED,
    VGG,
    architecture,
)
from mmengine.registry import MODELS, init_default_scope
from small import (
    ROOT,
    allow_small_cifar,
    check_levels,
    load,
    make_data_roots,
    narrow_vgg,
    shrink_data,
    shrink_model,
    shrink_schedule,
)
from torch import nn

from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.publish import quantization_of
from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.plan import make_plan
from gdrq_mm.quantizers.scale_clip import default_weight_k
from gdrq_mm.training import get_state


def cell_params(cells):
    return [pytest.param(cell, id=Path(cell.config).stem) for cell in cells]


@pytest.fixture
def small(monkeypatch):
    """Function config name -> the config with a narrow model."""
    narrow_vgg(monkeypatch)
    allow_small_cifar(monkeypatch)

    def make(config):
        cfg = load(config)
        shrink_model(config, cfg)
        return cfg

    return make


@pytest.fixture(scope='module')
def data_roots(demo_data, tmp_path_factory):
    return make_data_roots(demo_data, tmp_path_factory.mktemp('real'))


OTHER_DATA = ('demo', 'tiny-imagenet', 'bccd', 'camvid')


def test_the_tables_are_complete():
    """As many cells as the paper has, and no config that is none of them."""
    per_table = {table: sum(cell.table == table for cell in CELLS)
                 for table in range(1, 7)}
    assert per_table == {1: 4, 2: 3 * 4, 3: 1 + 4, 4: 1 + 4, 5: 4, 6: 4}
    ours = {cell.config for cell in CELLS} | {FLOAT_CIFAR}
    bases = {'resnet/resnet18_gdrq_cifar100.py',
             'faster_rcnn/faster-rcnn_r50_fpn_gdrq_voc0712.py',
             'pspnet/pspnet_r50-d8_gdrq_cityscapes.py'}
    there = {str(path.relative_to(ROOT / 'configs'))
             for path in (ROOT / 'configs').glob('*/*.py')
             if path.parent.name != '_base_' and not any(
                 data in path.name for data in OTHER_DATA)}
    assert there == ours | bases


@pytest.mark.parametrize('config', [FLOAT_CIFAR, VGG, RESNET_50, FASTER_RCNN,
                                    PSPNET])
def test_float_cells_and_starts_build_as_float_models(config, small):
    model = build_model(small(config))
    assert get_state(model) is None
    layers = [each for each in model.modules()
              if isinstance(each, (nn.Conv2d, nn.Linear))]
    assert len(layers) == NUM_LAYERS[architecture(
        config.replace('vgg16bn_', 'vgg16bn'))]


@pytest.mark.parametrize('cell', cell_params(CELLS))
def test_the_plan_of_the_full_model_is_the_tables(cell, monkeypatch):
    """On the meta device: full size, no memory."""
    linspace = torch.linspace  # mmpretrain reads its drop path rates from it
    monkeypatch.setattr(torch, 'linspace',
                        lambda *args: linspace(*args, device='cpu'))
    cfg = load(cell.config)
    init_default_scope(cfg.default_scope)
    quantization = QuantConfig.from_dict(quantization_of(cfg))
    model = cfg.model.copy()
    model.pop('quantization')
    model.type = model.pop('architecture')
    with torch.device('meta'):
        model = MODELS.build(model)
    name = architecture(cell.config)
    plans = {plan.name: plan for plan in make_plan(model, quantization)}
    layers = {key for key, module in model.named_modules()
              if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert set(plans) == layers and len(layers) == NUM_LAYERS[name]
    for layer, plan in plans.items():
        if layer in SKIPPED.get(name, ()):
            assert not plan.quantized
            continue
        weight, activation = (8, 8) if layer in FIRST_AND_LAST[name] \
            else cell.bits
        assert plan.weight.bits == weight, layer
        assert plan.weight.group_size == cell.group_size, layer
        # The paper's at all bits: written out where the default is another.
        assert (plan.weight.k or default_weight_k(weight)) == 2, layer
        assert plan.weight.clip == (
            'search' if cell.table == 1 else 'threshold'), layer
        assert plan.weight.projection == (cell.table != 1), layer
        found = plan.activation and plan.activation.bits
        assert found == activation, layer
    assert set(FIRST_AND_LAST[name]) <= layers


@pytest.mark.parametrize('cell', CELLS, ids=lambda cell: Path(
    cell.config).stem)
def test_it_says_where_its_float_start_comes_from(cell):
    """A checkpoint that the mm package lists, or the output of a config."""
    cfg = load(cell.config)
    hook = cfg.custom_hooks[-1]
    ends = [cfg.train_cfg.get(f'max_{unit}s') for unit in ('epoch', 'iter')]
    begin = hook.get('begin_epoch') or hook.get('begin_iter') or 0
    if cell.reshaped:
        assert begin == ends[0]
    elif cell.staged:
        assert 0 < begin < (ends[0] or ends[1])
    else:
        assert begin == 0
    if cell.start is None:
        assert cfg.get('load_from') is None
    elif cfg.load_from.startswith('https:'):
        package, _, name = cell.start.partition('::')
        folder = Path(__import__(package).__file__).parent / '.mim/configs'
        metafile, = (folder / name).parent.glob('metafile.y*ml')
        text = metafile.read_text()
        config = text.index(f'Config: configs/{name}')
        # The weights nearest to that config, before or after it. (The forks
        # have another host.)
        weights = text.index(urlsplit(cfg.load_from).path)
        between = text[min(config, weights):max(config, weights)]
        assert between.count('Name: ') == 0
    else:
        start = load(cell.start)
        stem = Path(cell.start.partition('::')[2] or cell.start).stem
        assert cfg.load_from == (f'work_dirs/{stem}/epoch_'
                                 f'{start.train_cfg.max_epochs}.pth')


def test_the_float_start_of_the_cifar_tables_trains(small, data_roots,
                                                    make_runner):
    """The only one that no mm package has a config of."""
    cfg = small(FLOAT_CIFAR)
    shrink_data(cfg, data_roots)
    shrink_schedule(cfg)
    runner = make_runner(cfg)
    runner.train()
    assert runner.epoch == 2
    assert all(torch.isfinite(torch.tensor(value))
               for step in runner.record.losses for value in step.values())


@pytest.mark.parametrize('cell', cell_params(CELLS))
def test_it_trains_from_its_start(cell, small, data_roots, make_runner,
                                  run_log, tmp_path):
    cfg = small(cell.config)
    shrink_data(cfg, data_roots)
    shrink_schedule(cfg)
    cfg.load_from = None
    if cell.start is not None:
        start = build_model(small(cell.start))
        if get_state(start) is not None:
            get_state(start).set_phase('reshape')
        cfg.load_from = str(tmp_path / 'start.pth')
        torch.save(dict(state_dict=start.state_dict()), cfg.load_from)
    runner = make_runner(cfg, *copy.deepcopy(cfg.custom_hooks))
    runner.train()
    losses = [value for step in runner.record.losses
              for value in step.values()]
    assert losses and all(torch.isfinite(torch.tensor(losses)))
    phases = runner.record.phases
    if cell.staged:
        assert set(phases) == {'reshape', 'quantize'}
        assert phases == sorted(phases, reverse=True)
    else:
        assert set(phases) == {'reshape' if cell.reshaped else 'quantize'}
    state, name = get_state(runner.model), architecture(cell.config)
    assert len(state.layers) == NUM_LAYERS[name] - len(SKIPPED.get(name, ()))
    for layer in state.layers.values():
        check_levels(layer, state.phase)
        if layer.input_quantizer is not None:
            assert layer.input_quantizer.initialized
    log = run_log(runner)
    assert 'unexpected key' not in log and 'missing keys' not in log
    assert 'size mismatch' not in log
