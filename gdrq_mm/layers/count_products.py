"""Which modules multiply activations with activations, and how often."""
import ast
import inspect
import textwrap
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Set,
    Type,
    Union,
)

from torch import nn

from .products import PER_CALL


class Products(NamedTuple):
    """What is known of the products of a class of modules.

    Args:
        number (int): How many one forward has.
        reason (str): Why they stay float; '' where they need not.
    """
    number: int
    reason: str = ''


# Registered, by class or by its full name; and counted.
_KNOWN: Dict[Union[Type[nn.Module], str], Products] = {}
_COUNTED: Dict[Type[nn.Module], Products] = {}


def register_products(cls: Union[Type[nn.Module], str], number: int,
                      reason: str = '') -> None:
    """Say how many products of activations modules of a class compute.

    Without it, they are counted in the source of its ``forward``, of the
    methods that it names and of functions of the same file: ``@``,
    ``matmul``, ``bmm``, ``mm``, ``baddbmm``, ``einsum`` of two operands, and
    ``scaled_dot_product_attention``, which has two.

    Args:
        cls (type or str): Modules of exactly this class, which may be given
            as 'package.module.Class': it need not be imported. What is said
            of the class itself counts before that.
        number (int): Products in one forward; 0: they stay float.
        reason (str): Why they stay float, for the plan. Defaults to '':
            modules without products are not in the plan.
    """
    _KNOWN[cls] = Products(number, reason)


def products_of(module: nn.Module) -> Products:
    """What is known of the products of activations that a module computes.

    Args:
        module (nn.Module): Any module; 0 products also where there is no
            source to look at.
    """
    cls = type(module)
    for key in (cls, f'{cls.__module__}.{cls.__qualname__}'):
        if key in _KNOWN:
            return _KNOWN[key]
    if cls not in _COUNTED:
        _COUNTED[cls] = Products(_count_in_source(cls))
    return _COUNTED[cls]


def count_products(module: nn.Module) -> int:
    """How many products of activations the code of a module computes.

    Returns:
        int: 0 also where there is no source to look at.
    """
    return products_of(module).number


def _count_in_source(cls: Type[nn.Module]) -> int:
    number = 0
    for tree in _code_of(cls):
        for node in ast.walk(tree):
            number += isinstance(node, ast.MatMult)
            if isinstance(node, ast.Call):
                number += PER_CALL.get(_last_name(node.func), 0)
    return number


def _last_name(node: ast.AST) -> str:
    return getattr(node, 'attr', None) or getattr(node, 'id', '')


def _code_of(cls: Type[nn.Module]) -> Iterator[ast.AST]:
    """Source of what the forward of a class runs: methods, and functions of
    the same file."""
    done: Set[Callable] = set()
    waiting = _methods(cls, 'forward')
    while waiting:
        function = waiting.pop()
        tree = None if function in done else _parsed(function)
        done.add(function)
        if tree is None:
            continue
        yield tree
        names = set(map(_last_name, ast.walk(tree)))
        if 'getattr' in names:  # by names that only a forward knows
            names.update(dir(cls))
        for name in names - PER_CALL.keys():
            other = function.__globals__.get(name)
            if inspect.isfunction(other) and \
                    other.__module__ == function.__module__:
                waiting.append(other)
            waiting += _methods(cls, name)


def _methods(cls: Type[nn.Module], name: str) -> List[Any]:
    """What a module calls ``name``, and what that replaces and calls."""
    methods = []
    for base in cls.__mro__:
        found = vars(base).get(name)
        method = inspect.unwrap(getattr(found, '__func__', found))
        if inspect.isfunction(method) and base is not nn.Module:
            methods.append(method)
            if 'super' not in method.__code__.co_names:
                break
    return methods


def _parsed(function: Callable) -> Optional[ast.AST]:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
