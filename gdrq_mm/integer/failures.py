"""Where in a model a capture has failed."""
import traceback

from torch import nn


def failing_layer(error: Exception, model: nn.Module) -> str:
    """Name of the innermost layer that an error comes from, or the method of
    a model that is no layer of this one but computes with its layers.

    Args:
        error (Exception): As it was raised.
        model (nn.Module): What was captured.
    """
    names = {module: name for name, module in model.named_modules() if name}
    found = ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get('self')
        if not isinstance(module, nn.Module) or module is model:
            continue
        if module in names:
            found = f'in {names[module]}: '
        elif not type(module).__module__.startswith('torch.'):
            found = f'in {type(module).__name__}.{frame.f_code.co_name}: '
    return found


def own_kernel(error: Exception) -> str:
    """The autograd function, with a kernel of its own, that an error comes
    from, such as mmcv's deformable convolution; '' where it is none.

    Args:
        error (Exception): As it was raised.
    """
    found = ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_name == 'forward' and code.co_varnames[:1] == ('ctx', ):
            found = frame.f_globals['__name__']
    return found
