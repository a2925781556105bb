"""Where gdrq_mm meets mmengine, mmcv and the mm packages."""
from .float_products import register_float_products
from .hook import GDRQHook
from .mmcv_layers import register_mmcv_layers
from .patches import active_patches, patch_mmengine, unpatch_mmengine
from .quantized_model import QuantizedModel

__all__ = ['GDRQHook', 'QuantizedModel', 'active_patches', 'patch_mmengine',
           'unpatch_mmengine']

register_mmcv_layers()
register_float_products()
patch_mmengine()
