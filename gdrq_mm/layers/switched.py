"""Models that rebuild themselves for deployment, from weights of branches.

RepVGG, MobileOne, RepLKNet, RepMLP, LeViT and RIFormer put new float layers
in the place of what was trained. A quantized model would turn into a float
one.
"""
import itertools
import weakref
from functools import partial
from typing import Iterable, List, MutableMapping, Optional

from torch import nn

from ..errors import and_more
from .base import QuantLayer

METHODS = ('switch_to_deploy', 'merge_kernel')
_FLAGS = ('deploy', 'small_kernel_merged')  # what says that it is done
# State -> weak reference to its model.
_MODELS: MutableMapping[nn.Module, weakref.ref] = weakref.WeakKeyDictionary()


def refuse_switches(model: nn.Module) -> None:
    """Let every method of a quantized model that switches it raise.

    Args:
        model (nn.Module): With quantized layers. Parts that are switched
            already, where the method does nothing, keep theirs.
    """
    for name, module in model.named_modules():
        flag = next((each for each in _FLAGS if hasattr(module, each)),
                    _FLAGS[0])
        if getattr(module, flag, False):
            continue
        layers = sum(isinstance(each, QuantLayer)
                     for each in module.modules())
        for method in METHODS:
            if layers and callable(getattr(module, method, None)):
                setattr(module, method,
                        partial(_refuse, name, method, flag, layers))


def _refuse(name: str, method: str, flag: str, layers: int) -> None:
    call = '.'.join(filter(None, ['model', name, method]))
    raise RuntimeError(
        f'{call}() would put float layers in the place of {layers} quantized '
        f'ones: call it on the float model, before quantize_, and train what '
        f'it gives. In a config: {flag}=True in the backbone, and load_from= '
        'a float checkpoint that was saved after switching')


def watch_layers(model: nn.Module, state: nn.Module) -> None:
    """Remember whose layers :func:`lost_layers` looks for.

    Args:
        model (nn.Module): The converted model.
        state (QuantizationState): Its state.
    """
    _MODELS[state] = weakref.ref(model)


def parameters_of(state: nn.Module) -> Iterable[nn.Parameter]:
    """All parameters of a quantized model, those that it was given after the
    conversion as well; of a copy, those it had then.

    Args:
        state (QuantizationState): State of the model.
    """
    model = _MODELS.get(state, lambda: None)()
    return state.parameters_ if model is None else itertools.chain(
        state.parameters_, model.parameters())


def lost_layers(state: nn.Module, model: Optional[nn.Module] = None
                ) -> List[str]:
    """Quantized layers that other code has taken out of the model.

    Args:
        state (QuantizationState): State of the model.
        model (nn.Module, optional): The model. Defaults to None: the one that
            was converted; of a copy, nothing is known.

    Returns:
        list[str]: Their names.
    """
    if model is None and state in _MODELS:
        model = _MODELS[state]()
    if model is None:
        return []
    present = set(model.modules())
    return [name for name, layer in state.layers.items()
            if layer not in present]


def check_layers_are_there(state: nn.Module,
                           model: Optional[nn.Module] = None) -> None:
    """Refuse a model that lost quantized layers after it was converted.

    Args:
        state (QuantizationState): State of the model.
        model (nn.Module, optional): See :func:`lost_layers`.

    Raises:
        ValueError: Some are no longer in the model.
    """
    lost = lost_layers(state, model)
    if lost:
        raise ValueError(
            f'{len(lost)} quantized layers are no longer in the model: '
            f'{and_more(lost)}. Other code has put float layers '
            'in their place. Build the model anew, do that to the float '
            'model, and quantize it then')
