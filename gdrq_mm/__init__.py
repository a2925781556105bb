"""2- to 8-bit quantization-aware training for OpenMMLab models (GDRQ)."""
from . import functional
from .config import QuantConfig
from .convert import quantize_
from .openmmlab import GDRQHook, QuantizedModel
from .plan import QuantReport
from .training import calibrate, update_bn_stats
from .version import __version__

__all__ = ['GDRQHook', 'QuantConfig', 'QuantReport', 'QuantizedModel',
           '__version__', 'calibrate', 'functional', 'quantize_',
           'update_bn_stats']
