"""The metric and the data that models of a config are compared by."""
import pytest
from mmengine.config import Config

from gdrq_mm.openmmlab.metrics import metric_name, rule_of, with_test


def test_which_of_a_metric_is_better():
    assert rule_of('pascal_voc/mAP', Config()) == 'greater'
    assert rule_of('coco_panoptic/PQ', Config()) == 'greater'
    assert rule_of('loss', Config()) == 'less'
    with pytest.raises(ValueError, match='whether a greater rmse is better is '
                       "not known; say it in .*save_best='rmse', rule="):
        rule_of('rmse', Config())
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(
        save_best='rmse', rule='less'))))
    assert rule_of('rmse', cfg) == 'less'


def test_the_metric_of_the_task():
    found = dict(aAcc=1., mIoU=2., mAcc=3.)
    assert metric_name(found, Config()) == 'mIoU'
    assert metric_name(found, Config(), 'mAcc') == 'mAcc'
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(save_best='aAcc'))))
    assert metric_name(found, cfg) == 'aAcc'
    assert metric_name(dict(own=1., other=2.), Config()) == 'own'
    with pytest.raises(ValueError, match="no metric 'x'; it has aAcc, mIoU"):
        metric_name(found, Config(), 'x')
    with pytest.raises(ValueError, match='gives no number to compare models'):
        metric_name({}, Config())


def test_models_are_tested_where_there_are_labels():
    val = dict(val_dataloader=dict(of='val'),
               val_evaluator=dict(type='CocoMetric'))
    test = dict(test_dataloader=dict(of='test'), test_cfg=dict(type='Loop'))
    labelled = dict(type='CocoMetric')
    sent_in = dict(type='CocoMetric', format_only=True)
    for evaluator, split in ((labelled, 'test'), ([labelled], 'test'),
                             (sent_in, 'val'), ([sent_in], 'val'),
                             (None, 'val')):
        cfg = with_test(Config(dict(val, **test, test_evaluator=evaluator)))
        assert cfg.test_dataloader.of == split
        assert cfg.test_evaluator == (evaluator if split == 'test'
                                      else labelled)
        assert cfg.test_cfg == (test['test_cfg'] if split == 'test' else {})
    with pytest.raises(ValueError, match='has no evaluator'):
        with_test(Config(dict(test, test_evaluator=sent_in)))
