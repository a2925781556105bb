"""2- to 8-bit quantization-aware training for OpenMMLab models (GDRQ)."""
from . import functional
from .compat import allow_gdrq_mm_configs, allow_mmengine_checkpoints
from .config import QuantConfig
from .convert import calibrate, quantize_
from .hooks import GDRQHook
from .models import QuantizedModel
from .reading import register_loaders
from .recalibrate import recalibrate_bn
from .report import QuantReport
from .version import __version__

allow_gdrq_mm_configs()
allow_mmengine_checkpoints()
register_loaders()

__all__ = ['GDRQHook', 'QuantConfig', 'QuantReport', 'QuantizedModel',
           '__version__', 'calibrate', 'functional', 'quantize_',
           'recalibrate_bn']
