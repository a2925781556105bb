"""Names of modules in a graph in which they have several."""
from torch import nn
from torch.fx import GraphModule


def use_first_names(module: GraphModule, model: nn.Module) -> None:
    """One name per module, in a graph in which it has several: torch.export
    takes the last one for tensors, and that of the call for calls."""
    first = {part: name for name, part in model.named_modules()}
    names = {name: first[part] for name, part in model.named_modules(
        remove_duplicate=False)}
    moved = {}
    for node in module.graph.nodes:
        stack = node.meta.get('nn_module_stack')
        if stack:
            node.meta['nn_module_stack'] = {
                key: (names.get(name, name), kind)
                for key, (name, kind) in stack.items()}
        if node.op == 'get_attr':
            old, _, key = node.target.rpartition('.')
            if names.get(old, old) != old:
                moved[node.target] = old, names[old], key
    for old, new, key in moved.values():
        _move(module.get_submodule(old), _submodule(module, new), key)
    for node in module.graph.nodes:
        if node.op == 'get_attr' and node.target in moved:
            _, new, key = moved[node.target]
            node.target = f'{new}.{key}'


def _submodule(module: GraphModule, name: str) -> nn.Module:
    """A part of a graph module, made if it is not there."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        module.add_submodule(name, nn.Module())
        return module.get_submodule(name)


def _move(source: nn.Module, target: nn.Module, key: str) -> None:
    value = getattr(source, key)
    delattr(source, key)
    if isinstance(value, nn.Parameter):
        target.register_parameter(key, value)
    else:
        target.register_buffer(key, value)
