"""What becomes of one layer, or of one module's output or products."""
from dataclasses import dataclass
from typing import Dict, List, Optional

from torch import Tensor, nn

from ..config import ActivationScheme, WeightScheme
from ..layers import QUANT_LAYERS
from ..layers.output import OUTPUT_QUANTIZER
from ..layers.product_operands import PRODUCT_QUANTIZERS

_TABLES = nn.Embedding, nn.EmbeddingBag


@dataclass
class LayerPlan:
    """What happens to one layer, or to output or products of one module.

    Args:
        name (str): Name in the model; of outputs and products, that of the
            quantizers.
        module (nn.Module): The layer, or the module that returns the output
            or multiplies.
        weight (WeightScheme, optional): None where the weight stays float.
        activation (ActivationScheme, optional): None where no activation is
            quantized here.
        sites (int): Number of activation thresholds.
        reason (str): Why, in words; for quantized layers the rule behind it.
        output (bool): Whether it is about what ``module`` returns.
        products (bool): Whether it is about what ``module`` multiplies, with
            ``activation`` for the operands.
    """
    name: str
    module: nn.Module
    weight: Optional[WeightScheme] = None
    activation: Optional[ActivationScheme] = None
    sites: int = 0
    reason: str = ''
    output: bool = False
    products: bool = False

    @property
    def child(self) -> str:
        """Name of the child of the module that this is about, '' where it is
        about the module as a layer."""
        return OUTPUT_QUANTIZER if self.output else \
            PRODUCT_QUANTIZERS if self.products else ''

    @property
    def module_name(self) -> str:
        """Name of the module, which rules match."""
        return self.name[:len(self.name) - len(self.child)].rstrip('.')

    @property
    def parameter_name(self) -> str:
        """Name of the weight in the module."""
        cls = type(self.module)
        return getattr(QUANT_LAYERS.get(cls, cls), 'weight_name', 'weight')

    @property
    def parameter(self) -> Optional[nn.Parameter]:
        """The weight of the layer, None for ReLUs, outputs and
        products."""
        if self.child:
            return None
        weight = self.module._parameters.get(self.parameter_name)
        return getattr(self.module, 'weight', None) if weight is None \
            else weight

    @property
    def matrices(self) -> List[Tensor]:
        """All matrices that the layer itself multiplies by; recurrent and
        attention layers have others than ``weight``."""
        return [] if self.child else matrices_of(self.module)

    def learned_parameters(self) -> Dict[str, nn.Parameter]:
        """Learned parameters of the quantizers that were put here."""
        layer = getattr(self.module, self.child, None) if self.child \
            else self.module
        quantizers = tuple(getattr(layer, 'quantizers', tuple)())
        learned = {id(parameter) for _, quantizer in quantizers
                   for parameter in quantizer.learned_parameters()}
        return {f'{part}.{name}': parameter for part, quantizer in quantizers
                for name, parameter in quantizer.named_parameters()
                if id(parameter) in learned}

    @property
    def quantized(self) -> bool:
        return self.weight is not None or self.activation is not None

    def scheme(self) -> dict:
        """What a checkpoint must agree with, in primitive types."""
        described = {}
        if self.weight:
            described['weight'] = self.weight.describe()
        if self.activation:
            described['activation'] = (f'{self.activation.describe()}, '
                                       f'{self.sites} sites')
        return described


def kind_of(module: nn.Module) -> Optional[str]:
    """'relu', 'layer' (it owns weights of two or more dimensions) or None."""
    if type(module) is nn.ReLU:
        return 'relu'
    return 'layer' if matrices_of(module) else None


def matrices_of(module: nn.Module) -> List[Tensor]:
    """``weight``; ``weight_ih_l0`` and the like of recurrent layers;
    ``in_proj_weight`` of attention. Tables are looked up, not multiplied. Of a
    registered class, whatever is quantized."""
    cls = type(module)
    quantized = getattr(QUANT_LAYERS.get(cls, cls), 'weight_name', None)
    if isinstance(module, _TABLES) and quantized is None:
        return []
    own = dict(module.named_parameters(recurse=False))
    weight = None if quantized in own else getattr(module, 'weight', None)
    if 'weight' not in own and isinstance(weight, Tensor):
        return [weight] if weight.dim() >= 2 else []  # computed from others
    return [value for name, value in own.items()
            if name == quantized or 'weight' in name and value.dim() >= 2]
