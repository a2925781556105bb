"""First and last layers, by what reads what."""
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from gdrq_mm import quantize_
from gdrq_mm.analysis import first_and_last
from gdrq_mm.config import QuantConfig
from gdrq_mm.openmmlab.scopes import example_batch
from gdrq_mm.plan import make_plan
from gdrq_mm.training import get_state

W8 = QuantConfig.from_dict(dict(weight=dict(bits=8)))
SCOPES = dict(faster_rcnn='mmdet', pspnet='mmseg', resnet='mmpretrain')


class Branches(nn.Module):
    """Two inputs, a shared trunk called twice, two predictors; the order of
    the modules says nothing."""

    def __init__(self):
        super().__init__()
        self.box = nn.Conv2d(4, 2, 1)
        self.trunk = nn.Conv2d(4, 4, 3, padding=1)
        self.score = nn.Conv2d(4, 1, 1)
        self.depth_stem = nn.Conv2d(1, 4, 1)
        self.image_stem = nn.Conv2d(3, 4, 1)
        self.auxiliary = nn.Conv2d(4, 1, 1)
        self.second = nn.Linear(3, 2)

    def forward(self, image, depth):
        x = self.image_stem(image).relu_() + self.depth_stem(depth)
        x = self.trunk(self.trunk(x).relu())
        box = self.box(x)
        # As proposals do: values of a prediction choose, without gradient.
        pooled = x.mean((2, 3))[:, :3] * box.detach().mean()
        return box, self.score(x), self.second(pooled)


def ends_of(model, forward):
    return first_and_last(model, make_plan(model, W8), forward)


def test_ends_are_those_of_the_graph_and_not_of_the_order():
    model = Branches()
    ends = ends_of(model, lambda: model(torch.rand(2, 3, 6, 6),
                                        torch.rand(2, 1, 6, 6)))
    assert ends.first == ['depth_stem', 'image_stem']
    assert ends.last == ['box', 'score', 'second']
    assert ends.uncalled == ['auxiliary']


@pytest.mark.parametrize('quantized', [False, True])
def test_frozen_layers_are_seen_and_nothing_is_changed(quantized):
    model = Branches().train()
    inputs = torch.rand(2, 3, 6, 6), torch.rand(2, 1, 6, 6)
    model.image_stem.requires_grad_(False)
    model.trunk.eval()
    if quantized:
        quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4)))
    plans = get_state(model).plans if quantized else make_plan(model, W8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():  # what is around it does not matter
        ends = first_and_last(model, plans, lambda: model(*inputs))
    assert ends.first == ['depth_stem', 'image_stem']
    assert [p.requires_grad for p in model.parameters()] == trained
    assert model.training and not model.trunk.training
    assert all(torch.equal(value, before[key])
               for key, value in model.state_dict().items())
    assert not any(layer.module._forward_hooks for layer in plans)


class Block(nn.Module):

    def __init__(self, **options):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.options = options

    def forward(self, x):

        def inner(x):
            return self.second(self.first(x).relu()) + x

        # By its name, as some models import it.
        return checkpoint(inner, x, **self.options) if x.requires_grad \
            else inner(x)


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointed_parts_are_seen(reentrant):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Block(use_reentrant=reentrant),
                          Block(use_reentrant=reentrant), nn.Conv2d(4, 2, 1))
    ends = ends_of(model, lambda: model(torch.randn(1, 3, 8, 8)))
    assert (ends.first, ends.last) == (['0'], ['3'])
    assert torch.utils.checkpoint.CheckpointFunction is CheckpointFunction


class Frozen(nn.Module):

    def __init__(self):
        super().__init__()
        self.words, self.stem = nn.Linear(3, 4), nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            words = self.words(x)
        return self.head(self.stem(x) + words)


def test_layers_without_a_graph_are_told_by_name():
    model, x = Frozen(), torch.randn(2, 3)
    with pytest.warns(UserWarning, match='calls words without gradients'):
        ends = ends_of(model, lambda: model(x))
    assert ends == (['stem'], ['head'], [])
    with pytest.raises(ValueError, match='words, stem, head without grad'):
        ends_of(model, torch.no_grad()(lambda: model(x)))


def test_a_single_layer_is_first_and_last():
    model = nn.Sequential(nn.Linear(3, 2))
    ends = ends_of(model, lambda: model(torch.rand(1, 3)))
    assert ends.first == ends.last == ['0']


@pytest.mark.parametrize('name, last', [
    ('resnet', ['head.fc']), ('pspnet', ['decode_head.conv_seg']),
    ('faster_rcnn', ['rpn_head.rpn_cls', 'rpn_head.rpn_reg',
                     'roi_head.bbox_head.fc_cls',
                     'roi_head.bbox_head.fc_reg'])])
def test_ends_of_the_models_of_the_three_packages(name, last, build_model):
    model = build_model(name)
    batch = example_batch(SCOPES[name], (64, 64))
    ends = ends_of(model, lambda: model.test_step(batch))
    stem = 'backbone.stem.0' if name == 'pspnet' else 'backbone.conv1'
    assert (ends.first, ends.last) == ([stem], last)
    assert all('auxiliary' in one for one in ends.uncalled)
    assert bool(ends.uncalled) == (name == 'pspnet')


@pytest.mark.parametrize('detections', [True, False])
def test_boxes_that_masks_are_looked_for_in_are_read_by_no_layer(
        detections, load_config, build_model, with_masks):
    cfg = with_masks(load_config('faster_rcnn'))
    cfg.model.test_cfg.rcnn.score_thr = 0. if detections else 2.
    model = build_model(cfg)
    batch = example_batch('mmdet', (64, 64))
    ends = ends_of(model, lambda: model.test_step(batch))
    masks = [name for name, _ in model.named_modules()
             if name.startswith('roi_head.mask_head.') and name in (
                 *ends.last, *ends.uncalled)]
    assert ends.last == [
        'rpn_head.rpn_cls', 'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_cls',
        'roi_head.bbox_head.fc_reg', *(masks if detections else [])]
    assert masks[-1] == 'roi_head.mask_head.conv_logits'
    assert ends.uncalled == ([] if detections else masks)
