"""Which parts are known: by the functions of OpenMMLab that they have."""
import pytest
from mmdet.models.roi_heads import CascadeRoIHead
from torch import nn

from gdrq_mm.openmmlab.deployable.boxes import (
    check_methods,
    check_nms,
    method_of,
)


class Head(CascadeRoIHead):
    """Another class, and the same functions."""

    def __init__(self):
        nn.Module.__init__(self)


def test_a_subclass_has_the_methods_of_its_base():
    check_methods('roi_head', Head(), {'CascadeRoIHead'}, ('predict_bbox', ))
    assert method_of(Head(), '_refine_roi') == 'CascadeRoIHead'
    assert method_of(None, 'predict') == '?.'


def test_a_class_of_the_same_name_elsewhere_is_not_known():
    own = type('CascadeRoIHead', (Head, ), {})

    def predict_bbox(self):
        pass

    predict_bbox.__qualname__ = 'CascadeRoIHead.predict_bbox'
    own.predict_bbox = predict_bbox
    with pytest.raises(ValueError, match='^roi_head is a CascadeRoIHead, '
                       'whose predict_bbox is not known .*--raw'):
        check_methods('roi_head', own(), {'CascadeRoIHead'},
                      ('predict_bbox', ))


def test_a_method_of_one_object_is_not_known():
    head = Head()
    head.predict_bbox = lambda *args: None
    with pytest.raises(ValueError, match='whose predict_bbox is not known'):
        check_methods('roi_head', head, {'CascadeRoIHead'},
                      ('predict_bbox', ))


@pytest.mark.parametrize('nms, message', [
    (dict(offset=1), '^test_cfg.rcnn has nms.offset, .*--raw'),
    (dict(max_num=9), '^test_cfg.rcnn has nms.max_num, .*--raw')])
def test_suppression_that_is_not_known_is_refused(nms, message):
    for name in ('iou_threshold', 'iou_thr'):  # mmcv takes both
        check_nms('test_cfg.rcnn', {'type': 'nms', name: .5})
    with pytest.raises(ValueError, match=message):
        check_nms('test_cfg.rcnn', nms)
