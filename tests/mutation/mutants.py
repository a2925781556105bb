"""Small wrong changes of a source text, one at a time.

The operators are those of mutmut and cosmic-ray that change what is computed:
comparisons, arithmetic, ``and``/``or``/``not``, numbers, True and False,
strings, conditions, statements that only call something, keyword
arguments. What errors and warnings say is left alone, and so are annotations
and docstrings.
"""
import ast
import copy
from typing import Iterator, List, NamedTuple, Tuple

_SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And}
_WORDS = ('warn', 'print_log')  # calls whose text is left alone


class Mutant(NamedTuple):
    """One change.

    Args:
        spans (list[tuple[int, int]]): First and last line of the statement;
            outside of function bodies, also of the classes around it.
        name (str): ``scope: old -> new``, and ``#n`` for the n-th of that
            name; it outlives changes elsewhere in the file.
        tree (ast.Module): The whole changed source.
    """
    spans: List[Tuple[int, int]]
    name: str
    tree: ast.Module


def mutants_of(source: str) -> List[Mutant]:
    """All mutants of a module's source, in the order of their places."""
    tree = ast.parse(source)
    found, names = [], {}
    for path, scope in _places(tree):
        node = _at(tree, path)
        for change in range(_number_of_changes(node)):
            mutated = copy.deepcopy(tree)
            new = _changed(_at(mutated, path), change)
            _put(mutated, path, new)
            ast.fix_missing_locations(mutated)
            name = f'{scope}: {_text(tree, path)} -> {_text(mutated, path)}'
            names[name] = names.get(name, 0) + 1
            if names[name] > 1:
                name += f' #{names[name]}'
            found.append(Mutant(_spans(tree, path), name, mutated))
    return found


def _places(tree: ast.Module) -> Iterator[tuple]:
    """Paths to the nodes that may change, and the function they are in."""

    def walk(node, path, scope):
        if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom,
                             ast.JoinedStr)):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            scope = f'{scope}.{node.name}'.lstrip('.')
        if isinstance(node, ast.Call) and _called(node) in _WORDS:
            yield path, scope
            return
        if isinstance(node, (ast.expr, ast.stmt, ast.keyword)):
            yield path, scope
        for field, value in ast.iter_fields(node):
            if field in ('annotation', 'returns', 'decorator_list', 'bases',
                         'op', 'ops', 'ctx'):
                continue
            values = value if isinstance(value, list) else [value]
            for index, child in enumerate(values):
                docstring = field == 'body' and index == 0 and isinstance(
                    child, ast.Expr) and isinstance(child.value, ast.Constant)
                if isinstance(child, ast.AST) and not docstring:
                    at = index if isinstance(value, list) else None
                    yield from walk(child, (*path, (field, at)), scope)

    return walk(tree, (), '')


def _spans(tree: ast.Module, path: tuple) -> List[Tuple[int, int]]:
    """Whose tests may see a change: those of the innermost statement."""
    spans = []
    for length in range(len(path), 0, -1):
        node = _at(tree, path[:length])
        if isinstance(node, ast.ClassDef) or isinstance(
                node, ast.stmt) and not spans:
            spans.append((node.lineno, node.end_lineno))
        if isinstance(node, ast.FunctionDef):
            break
    return spans


def _called(node: ast.Call) -> str:
    return getattr(node.func, 'attr', getattr(node.func, 'id', ''))


def _number_of_changes(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        return type(node.op) in _SWAPS
    if isinstance(node, ast.BoolOp):
        return 1
    if isinstance(node, ast.UnaryOp):
        return not isinstance(node.operand, ast.Constant)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float, str))
    if isinstance(node, (ast.If, ast.IfExp)):
        return 2 - _is_negated_inside(node.test)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, (ast.Call, ast.Yield))
    return isinstance(node, ast.Call) and len(node.keywords)


def _is_negated_inside(test: ast.expr) -> bool:
    """Whether a change of the condition itself says its contrary."""
    return isinstance(test, ast.UnaryOp) or isinstance(
        test, ast.Compare) and len(test.ops) == 1


def _changed(node: ast.AST, change: int) -> ast.AST:
    if isinstance(node, ast.Compare):
        node.ops[change] = _SWAPS[type(node.ops[change])]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        node.op = _SWAPS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        return node.operand
    elif isinstance(node, ast.Constant):
        value = node.value
        node.value = not value if isinstance(value, bool) else \
            f'XX{value}' if isinstance(value, str) else value + 1
    elif isinstance(node, (ast.If, ast.IfExp)):
        change += _is_negated_inside(node.test)
        node.test = ast.Constant(True) if change else \
            ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Expr):
        return ast.Pass()
    elif isinstance(node, ast.Call):
        del node.keywords[change]
    return ast.copy_location(node, node)


def _at(tree: ast.AST, path: tuple) -> ast.AST:
    for field, index in path:
        tree = getattr(tree, field)
        tree = tree if index is None else tree[index]
    return tree


def _put(tree: ast.AST, path: tuple, new: ast.AST) -> None:
    *outer, (field, index) = path
    parent = _at(tree, tuple(outer))
    if index is None:
        setattr(parent, field, ast.copy_location(new, getattr(parent, field)))
    else:
        values = getattr(parent, field)
        values[index] = ast.copy_location(new, values[index])


def _text(tree: ast.AST, path: tuple) -> str:
    """The innermost statement or expression around a place that tells it
    from others."""
    best = ''
    for length in range(len(path), 0, -1):
        node = _at(tree, path[:length])
        text = ast.unparse(getattr(node, 'test', node) if isinstance(
            node, (ast.If, ast.While)) else node)
        if '\n' in text or len(text) > 90:
            break
        best = text
        if isinstance(node, ast.stmt):
            break
    return best or ast.unparse(_at(tree, path)).splitlines()[0][:90]
