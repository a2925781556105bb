"""Fused code of torch that reads weights past their layers."""
from torch import nn


def leave_fast_paths(model: nn.Module) -> None:
    """Let torch's transformer encoders call their layers in evaluation, too.

    Without gradients ``nn.TransformerEncoderLayer`` hands the weights of all
    its layers to one fused operator, which would compute the float model.

    Args:
        model (nn.Module): With quantized layers.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            # The fused operator knows these two activations only.
            module.activation_relu_or_gelu = 0
