"""Classes of OpenMMLab whose products of activations stay float."""
from ..layers import register_products

_LOOP = 'its loop repeats only some of its products, which have no one order'
_LOSS = 'its products are those of a loss, which training alone computes'
_OTHER = 'what it multiplies are no activations of the network'
_REASONS = {
    'mmseg.models.decode_heads.ema_head.EMAModule': _LOOP,
    'mmseg.models.decode_heads.ham_head.NMF2D': _LOOP,
    'mmseg.models.losses.huasdorff_distance_loss.HuasdorffDisstanceLoss':
        _LOSS,
    'mmpretrain.models.heads.spark_head.SparKPretrainHead': _LOSS,
    'mmpretrain.models.losses.swav_loss.SwAVLoss': _LOSS,
    'mmpretrain.models.selfsup.densecl.DenseCL': _LOSS,
    'mmpretrain.models.selfsup.moco.MoCo': _LOSS,
    'mmpretrain.models.selfsup.simclr.SimCLR': _LOSS,
    'mmpretrain.models.utils.position_encoding.RotaryEmbeddingFast': _OTHER,
    'mmdet.models.detectors.soft_teacher.SoftTeacher': _OTHER,
}


def register_float_products() -> None:
    """Leave them float, by name: not all packages need be installed."""
    for name, reason in _REASONS.items():
        register_products(name, 0, reason)
