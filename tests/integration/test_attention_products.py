"""Quantized products of activations in real runs of the packages."""
from pathlib import Path

import mmdet
import numpy as np
import onnx
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint

from gdrq_mm.deploy import export_onnx
from gdrq_mm.layers import ProductQuantizers
from gdrq_mm.openmmlab.publish import publish
from gdrq_mm.plan import count_macs
from gdrq_mm.training import get_state

HOOK = dict(type='GDRQHook', quantization=dict(
    weight=dict(bits=4), activation=dict(bits=4), products=dict(bits=8)))
HEAD = dict(num_classes=20, loss=dict(type='CrossEntropyLoss'))
VIT = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer', img_size=32, patch_size=8, arch=dict(
            embed_dims=16, num_layers=2, num_heads=2,
            feedforward_channels=32)),
    head=dict(type='VisionTransformerClsHead', in_channels=16, **HEAD))
SWIN = dict(
    type='ImageClassifier',
    backbone=dict(
        type='SwinTransformer', img_size=32, patch_size=2, window_size=4,
        out_indices=(1, ),
        arch=dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2])),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=16, **HEAD))
DETR = 'detr/detr_r50_8xb2-150e_coco.py'


def classifier(load_config, model):
    cfg = load_config('resnet')
    cfg.model = model
    return cfg


def detector(load_config):
    """DETR of three classes on the data of a Faster R-CNN."""
    cfg = load_config('faster_rcnn')
    classes = cfg.model.roi_head.bbox_head.num_classes
    model = Config.fromfile(Path(
        mmdet.__file__).parent / '.mim' / 'configs' / DETR).model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.in_channels = [512]
    model.num_queries, model.bbox_head.num_classes = 12, classes
    model.encoder.num_layers = model.decoder.num_layers = 1
    cfg.model = model
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    return cfg


def assert_all_have_thresholds(model, number):
    found = [layer for layer in get_state(model).layers.values()
             if isinstance(layer, ProductQuantizers)]
    assert len(found) == number
    for layer in found:
        assert [quantizer.is_signed for quantizer in layer] == [
            True, True, False, True]
        assert all(quantizer.num_updates > 0 and quantizer.clip > 0
                   for quantizer in layer)


@pytest.mark.parametrize('model, number', [(VIT, 2), (SWIN, 4)])
def test_classifiers_train_resume_publish_and_export(
        model, number, make_runner, load_config, tmp_path, run_log):
    runner = make_runner(classifier(load_config, model), HOOK,
                         work_dir=tmp_path)
    runner.cfg.custom_imports = dict(imports=['gdrq_mm'])
    runner.cfg.dump(str(tmp_path / 'config.py'))
    runner.train()
    trained = runner.model.eval()
    assert_all_have_thresholds(trained, number)
    assert 'no product of activations' not in run_log(runner)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = trained(images)[0]
        count = count_macs(trained, lambda: trained(images))
    assert 0 < count.low_bit_between == count.between_activations

    path, config = publish(str(tmp_path / 'config.py'),
                           str(tmp_path / 'epoch_2.pth'),
                           str(tmp_path / 'zoo'))
    cfg = Config.fromfile(str(config))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        published = MODELS.build(cfg.model).eval()
    load_checkpoint(published, str(path), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(published(images)[0], expected)

    file = tmp_path / 'model.onnx'
    export_onnx(Scores(trained), images, file)
    assert_products_read_codes(onnx.load(str(file)), 2 * number)


class Scores(torch.nn.Module):
    """Class scores: one tensor in, one out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.head(self.model.extract_feat(images))


def assert_products_read_codes(proto, number):
    """As many products read two tensors of dequantized codes."""
    makers = {name: node.op_type for node in proto.graph.node
              for name in node.output}
    products = [[makers.get(name) for name in node.input]
                for node in proto.graph.node if node.op_type == 'MatMul']
    assert products.count(['DequantizeLinear'] * 2) == number


class SelfAttention(torch.nn.Module):

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x, x)[0]


def test_detr_trains_and_its_file_computes_what_was_trained(
        make_runner, load_config, tmp_path):
    runner = make_runner(detector(load_config), HOOK)
    runner.train()
    model = runner.model.eval()
    # Of the encoder one, of the decoder one on queries and one on images.
    assert_all_have_thresholds(model, 3)
    assert all(np.isfinite(loss['loss']) for loss in runner.record.losses)
    layer = SelfAttention(model.encoder.layers[0].self_attn.attn)
    x = torch.randn(6, 2, 256)
    with torch.no_grad():
        count = count_macs(layer, lambda: layer(x))
    assert 0 < count.low_bit_between == count.between_activations
    export_onnx(layer, x, tmp_path / 'attention.onnx')
    assert_products_read_codes(onnx.load(str(tmp_path / 'attention.onnx')), 2)
