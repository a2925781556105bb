"""What quantizers learn in stages that a backbone freezes."""
from typing import List, Tuple

from torch import nn


def keep_learning(state) -> None:
    """Let quantizers of frozen layers learn.

    Backbones of the mm packages freeze whole stages in every ``train()``
    (``frozen_stages``), what quantizers have there included, which optimizers
    and DistributedDataParallel have been given. Where no weight of a model
    trains (a teacher, an average), nothing learns; nor does what was frozen in
    a layer that trains.

    Args:
        state (QuantizationState): State of a model that begins to train.
    """
    weights = {id(plan.module): plan.parameter for plan in state.plans
               if plan.parameter is not None}
    if not any(each.requires_grad for each in weights.values()):
        return
    for layer, parameters in state.learned:
        weight = weights.get(id(layer))
        if not layer.training or weight is not None \
                and not weight.requires_grad:
            for parameter in parameters:
                parameter.requires_grad_(True)


def learned_in_freezing_backbones(model: nn.Module, state
                                  ) -> List[Tuple[nn.Module, list]]:
    """Layers of backbones with ``frozen_stages``, and what they learn.

    Args:
        model (nn.Module): The converted model.
        state (QuantizationState): Its state.
    """
    inside = {each for part in model.modules()
              if isinstance(getattr(part, 'frozen_stages', None), int)
              and part.frozen_stages >= 0 for each in part.modules()}
    return [(layer, [parameter for _, quantizer in layer.quantizers()
                     for parameter in quantizer.learned_parameters()])
            for layer in state.layers.values() if layer in inside]
