"""Models that rebuild themselves for deployment, from weights of branches.

RepVGG, MobileOne, RepLKNet, RepMLP, LeViT and RIFormer put new float layers
in the place of what was trained. A quantized model would turn into a float
one.
"""
from functools import partial

from torch import nn

from .base import QuantLayer

METHOD = 'switch_to_deploy'


def refuse_switches(model: nn.Module) -> None:
    """Let every ``switch_to_deploy`` of a quantized model raise.

    Args:
        model (nn.Module): With quantized layers. Parts that are switched
            already, where the method does nothing, keep theirs.
    """
    for name, module in model.named_modules():
        if not callable(getattr(module, METHOD, None)) \
                or getattr(module, 'deploy', False):
            continue
        layers = sum(isinstance(each, QuantLayer)
                     for each in module.modules())
        if layers:
            setattr(module, METHOD, partial(_refuse, name, layers))


def _refuse(name: str, layers: int) -> None:
    call = '.'.join(filter(None, ['model', name, METHOD]))
    raise RuntimeError(
        f'{call}() would put float layers in the place of {layers} quantized '
        f'ones: call it on the float model, before quantize_, and train what '
        'it gives. In a config: deploy=True in the backbone, and load_from= '
        'a float checkpoint that was saved after switching')


def check_layers_are_there(model: nn.Module, layers: dict) -> None:
    """Refuse a model that lost quantized layers after it was converted.

    Args:
        model (nn.Module): The model.
        layers (dict[str, nn.Module]): Its quantized layers, by name.

    Raises:
        ValueError: Some are no longer in the model.
    """
    present = set(model.modules())
    lost = [name for name, layer in layers.items() if layer not in present]
    if lost:
        raise ValueError(
            f'{len(lost)} quantized layers are no longer in the model, '
            f'{lost[0]} for one: other code has put float layers in their '
            'place. Do that to the float model, before quantize_')
