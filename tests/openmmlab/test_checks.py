import copy

import pytest
import torch
import torch.distributed as dist
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmengine.model import MMSeparateDistributedDataParallel
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from gdrq_mm import quantize_
from gdrq_mm.openmmlab.checks import (
    SHARDING,
    check_entries,
    check_model,
    frozen_norms,
)

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


def hook():
    return dict(type='GDRQHook', quantization=QUANTIZATION)


def conv_module(**kwargs):
    return nn.Sequential(
        ConvModule(3, 4, 3, norm_cfg=dict(type='BN'), **kwargs))


def test_float_and_quantized_models_pass(build_model):
    model = build_model('pspnet')
    check_model(model, {})
    quantize_(model, QUANTIZATION)
    check_model(model, {})


def test_efficient_conv_bn_eval_in_the_config_is_refused(make_runner):
    runner = make_runner('faster_rcnn', hook(),
                         efficient_conv_bn_eval=['backbone'])
    with pytest.raises(ValueError, match='efficient_conv_bn_eval .* config'):
        runner.train()


def test_efficient_conv_bn_eval_of_a_module_is_refused_with_its_name():
    model = conv_module(efficient_conv_bn_eval=True)
    with pytest.raises(ValueError, match='^0 uses efficient_conv_bn_eval'):
        check_model(model)
    model[0].turn_on_efficient_conv_bn_eval(False)
    check_model(model)


def test_quantized_model_type_refuses_efficient_conv_bn_eval(load_config):
    cfg = load_config('pspnet')
    cfg.merge_from_dict(dict(model=dict(
        type='QuantizedModel', architecture='EncoderDecoder',
        quantization=QUANTIZATION)))
    with DefaultScope.overwrite_default_scope('mmseg'):
        cfg.model.architecture = nn_builder(efficient_conv_bn_eval=True)
        for key in list(cfg.model):
            if key not in ('type', 'architecture', 'quantization'):
                cfg.model.pop(key)
        with pytest.raises(ValueError, match='efficient_conv_bn_eval'):
            MODELS.build(cfg.model)


def nn_builder(**kwargs):

    class Tiny(nn.Sequential):

        def __init__(self):
            super().__init__(*conv_module(**kwargs))

    return Tiny


def test_fused_normalization_is_refused_with_its_name(build_model):
    model = fuse_conv_bn(build_model('pspnet').eval())
    with pytest.raises(ValueError, match='fused into its convolution'):
        check_model(model)


def test_fusing_a_quantized_model_is_refused_and_leaves_it_as_it_was(
        build_model):
    for name in ('resnet', 'pspnet'):
        model = build_model(name).eval()
        quantize_(model, QUANTIZATION)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(RuntimeError, match='fuse_conv_bn'):
            fuse_conv_bn(model)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_fully_sharded_model_is_refused():
    store = dist.HashStore()
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = FullyShardedDataParallel(
            nn.Sequential(nn.Conv2d(3, 4, 3)), device_id=torch.device('cpu'))
        with pytest.raises(ValueError,
                           match='FullyShardedDataParallel.*shards'):
            check_model(model)
    finally:
        dist.destroy_process_group()


def test_frozen_norms_names_what_stays_in_eval_mode(build_model):
    model = build_model('faster_rcnn')
    quantize_(model, QUANTIZATION)
    model.eval()
    names = frozen_norms(model)
    assert not model.training and not model.backbone.layer2.training
    assert 'backbone.bn1' in names and 'backbone.layer4.2.bn3' in names
    assert len(names) == 53  # norm_eval: all of the backbone
    # A part that is in another mode than the whole stays so.
    model.train()
    model.roi_head.eval()
    assert frozen_norms(model) == names
    assert model.training and not model.roi_head.bbox_head.training


def test_frozen_norms_is_empty_where_normalization_trains(build_model):
    model = build_model('resnet').train()
    quantize_(model, QUANTIZATION)
    assert frozen_norms(model) == []
    assert model.training and model.backbone.bn1.training


def test_runner_warns_of_frozen_normalization(make_runner, run_log):
    runner = make_runner('faster_rcnn', hook())
    runner.train()
    assert '53 normalization layers (backbone.bn1' in run_log(runner)


def test_runner_says_nothing_where_normalization_trains(make_runner, run_log):
    runner = make_runner('resnet', hook())
    runner.train()
    assert 'normalization layers' not in run_log(runner)


def test_fused_norms_outside_conv_modules_are_refused(build_model):
    model = fuse_conv_bn(build_model('resnet').eval())
    with pytest.raises(ValueError, match='backbone.bn1 is fused'):
        check_model(model)


def test_an_identity_in_place_of_a_norm_is_not_taken_for_a_fused_one():
    """PoolFormer and ViT patch embeddings are built like this."""

    class PatchEmbed(nn.Module):

        def __init__(self):
            super().__init__()
            self.proj, self.norm = nn.Conv2d(3, 4, 4, 4), nn.Identity()

    check_model(nn.Sequential(PatchEmbed()))


@pytest.mark.parametrize('name', SHARDING)
def test_every_sharding_wrapper_is_refused_by_name(name):
    wrapper = type(name, (nn.Module, ), {})()
    with pytest.raises(ValueError, match=f'{name}.*MMDistributedDataParallel'):
        check_model(wrapper)


def test_parts_that_are_wrapped_one_by_one_are_refused(build_model):
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0,
                            world_size=1)
    try:
        model = MMSeparateDistributedDataParallel(build_model('resnet'))
        with pytest.raises(ValueError, match='^backbone is wrapped in '
                           'MMDistributedDataParallel by itself'):
            check_model(model)
    finally:
        dist.destroy_process_group()


def renames_thresholds(module, state_dict, prefix, local_metadata):
    for key in [*state_dict]:
        if key.endswith('input_quantizer.clip'):
            state_dict[f'other.{key}'] = state_dict.pop(key)


def test_a_model_whose_checkpoints_lack_entries_is_refused(build_model):
    model = build_model('resnet')
    quantize_(model, QUANTIZATION)
    check_entries(model)
    model._register_state_dict_hook(renames_thresholds)
    with pytest.raises(ValueError, match=r'ImageClassifier has no backbone\.'
                       r'conv1\.input_quantizer\.clip \(.* could not be'):
        check_entries(model)


def test_a_run_of_such_a_model_does_not_begin(make_runner):
    runner = make_runner('resnet', hook())
    runner.model._register_state_dict_hook(renames_thresholds)
    with pytest.raises(ValueError, match='could not be loaded'):
        runner.train()
    assert runner.iter == 0
