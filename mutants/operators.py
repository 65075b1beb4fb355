"""The mutations: cosmic-ray's operators, and three of our own for what this project's code is made of, calls.

Left out is what only makes noise: annotations, what is there for types alone, `raise`, `assert`, f-strings
(texts of messages), log lines and `strict` of `zip`. Each arithmetic sign has one replacement, where
cosmic-ray would try every other.
"""

import ast
import re
from typing import Any, NamedTuple

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator

_SIGNS = (
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul"),
    "BitOr_BitAnd",
)
_COMPARISONS = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is")
_OTHERS = (
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceUnaryOperator_USub_UAdd",
    "ReplaceUnaryOperator_Delete_Not",
    "AddNot",
    "NumberReplacer",
    "ZeroIterationForLoop",
    "RemoveDecorator",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
)


_NO_VALUES = {"torch", "nn", "F", "np", "math", "self", "cls", "functools", "itertools", "json"}
_SYMMETRIC = {"min", "max", "maximum", "hypot", "equal", "l1_loss", "mse_loss", "transpose"}
_Position = tuple[tuple[int, int], tuple[int, int]]


class SwapArguments(Operator):
    """Two positional arguments of a call that stand side by side, the other way round."""

    def mutation_positions(self, node: Any) -> list[_Position]:
        return [(node.children[i].start_pos, node.children[i + 2].end_pos) for i in self._firsts(node)]

    def mutate(self, node: Any, index: int) -> Any:
        i = self._firsts(node)[index]
        one, other = (node.children[k].get_code(include_prefix=False) for k in (i, i + 2))
        node.children[i], node.children[i + 2] = parso.parse(other), parso.parse(f" {one}")
        return node

    @staticmethod
    def _firsts(node: Any) -> list[int]:
        if node.type != "arglist" or node.parent.type != "trailer":
            return []
        if node.parent.get_previous_leaf().value in _SYMMETRIC:
            return []
        positional = [child.type != "argument" for child in node.children]
        return [i for i in range(0, len(positional) - 2, 2) if positional[i] and positional[i + 2]]

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("f(x, y)", "f(y, x)"), Example("f(x,y)", "f(y, x)"))


class LeaveOutMethod(Operator):
    """What a method was called on instead of what it gives: `x` for `x.sqrt()`."""

    def mutation_positions(self, node: Any) -> list[_Position]:
        return [(node.children[i].start_pos, node.children[i + 1].end_pos) for i in self._calls(node)]

    def mutate(self, node: Any, index: int) -> Any:
        i = self._calls(node)[index]
        del node.children[i : i + 2]
        return node

    @staticmethod
    def _calls(node: Any) -> list[int]:
        if node.type not in ("atom_expr", "power") or node.parent.type == "simple_stmt":
            return []
        marks = [child.get_code()[0] if child.type == "trailer" else "" for child in node.children]
        first = 2 if node.children[0].get_code().strip() in _NO_VALUES else 1
        return [i for i in range(first, len(marks) - 1) if marks[i] + marks[i + 1] == ".("]

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return (Example("y = x.sqrt()", "y = x"), Example("y = x.a.b(1).c()", "y = x.a.c()"))


class LeaveOutStatement(Operator):
    """`pass` instead of a call whose result nobody takes, or of an assignment to what is there already."""

    def mutation_positions(self, node: Any) -> list[_Position]:
        if node.type == "simple_stmt" and self._changes_something(node.children[0]):
            return [(node.start_pos, node.end_pos)]
        return []

    def mutate(self, node: Any, index: int) -> Any:
        node.children[0] = parso.parse(node.get_first_leaf().prefix + "pass")
        return node

    @staticmethod
    def _changes_something(statement: Any) -> bool:
        if statement.type in ("atom_expr", "power"):
            return statement.children[0].get_code().strip() != "super"
        if statement.type != "expr_stmt":
            return False
        target, sign = statement.children[:2]
        if sign.type == "annassign" and len(sign.children) == 2:  # a type alone
            return False
        return target.type in ("atom_expr", "power") or getattr(sign, "value", "=") != "="

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return tuple(Example(code, "pass\n") for code in ("x.clear()\n", "x += 1\n", "x[0] = 1\n"))


_OWN: tuple[type[Operator], ...] = (SwapArguments, LeaveOutMethod, LeaveOutStatement)
OPERATORS: dict[str, Operator] = {
    name: cosmic_ray.plugins.get_operator(f"core/{name}")()
    for name in (
        *(f"ReplaceBinaryOperator_{name}" for name in _SIGNS),
        *(f"ReplaceComparisonOperator_{name}" for name in _COMPARISONS),
        *_OTHERS,
    )
} | {kind.__name__: kind() for kind in _OWN}


_WITHOUT_MUTANTS = (
    "if TYPE_CHECKING:\n    from x import y\n",
    "class A(Protocol):\n    @property\n    def b(self, c: int = 3) -> int:\n        'Text.'\n        ...\n",
    "class A(Protocol, Generic[T]):\n    @property\n    def b(self) -> int: ...\n",
    "def f(x: tuple[int, 3], y: A | B) -> A[4]: ...\n",
    "x: dict[str, 4]\n",
    "self.x: torch.Tensor\n",
    "z = torch.maximum(x, y)\n",
    "raise A(1 + 2)\n",
    "x = f'{a + 1}'\n",
)
_WITH_MUTANTS = {  # what comes near to these, and how many
    "if TYPE_CHECKING:\n    pass\nelse:\n    x = True\n": 2,
    "if TYPING:\n    pass\n": 1,
    "class A(Protocol):\n    def b(self) -> int:\n        return 3\n": 2,
    "class A(Protocol):\n    b: int = 3\n": 2,
    "class A(B):\n    @property\n    def b(self) -> int: ...\n": 1,
    "class A:\n    b: dict[str, Annotated[float, Field(ge=0.5)]] = Field(x)\n": 2,
    "z = x.permute(a, b)\n": 2,
    "self.x: torch.Tensor = y\n": 1,
}


def check_examples() -> None:
    """See that each of our own operators does what its examples say, and what is left out."""
    for kind in _OWN:
        for example in kind.examples():
            found = mutate_code(example.pre_mutation_code, kind(), example.occurrence)
            assert found == example.post_mutation_code, (kind.__name__, example, found)
    for source in _WITHOUT_MUTANTS:
        assert not mutants_of(source), (source, mutants_of(source))
    for source, count in _WITH_MUTANTS.items():
        assert len(mutants_of(source)) == count, (source, mutants_of(source))


class Mutant(NamedTuple):
    """One change of a file."""

    line: int
    operator: str
    occurrence: int  # of all that the operator can change in the file

    def code(self, source: str) -> str | None:
        """The file's text with the change; none where that is no Python, or says the same."""
        code = mutate_code(source, OPERATORS[self.operator], self.occurrence)
        try:
            is_same = ast.dump(ast.parse(code or "")) == ast.dump(ast.parse(source))
        except SyntaxError:
            return None
        return None if is_same else code


def mutants_of(source: str) -> list[Mutant]:
    """All changes of a file's text, in the order of its lines."""
    nodes = list(ast_nodes(get_ast(source)))
    found = []
    for name, operator in OPERATORS.items():
        positions = [(node, start[0]) for node in nodes for start, _ in operator.mutation_positions(node)]
        found += [Mutant(line, name, i) for i, (node, line) in enumerate(positions) if not _is_noise(node)]
    return sorted(found)


def _is_noise(node: Any, is_called: bool = False) -> bool:
    """Whether a node is of a type, a message or the form of a signature, and not of what is computed.

    `is_called`: it stands in the parentheses of a call, as settings in an annotation do.
    """
    above = node.parent
    if above is None:
        return False
    is_called = is_called or (node.type == "trailer" and node.children[0].value == "(")
    return (
        node.type in ("raise_stmt", "assert_stmt", "fstring")
        or (node.type in ("expr_stmt", "atom_expr") and node.get_first_leaf().value == "logger")
        or (above.type == "parameters" and node.type == "operator")  # `*` before what is given by name
        or (above.type == "tfpdef" and node is above.children[-1])
        or (above.type == "annassign" and node is above.children[1] and not is_called)
        or (above.type == "funcdef" and node is above.annotation)
        or (node.type == "argument" and node.children[0].get_code().strip() == "strict")
        or (node.type == "trailer" and node.get_previous_sibling().get_code().strip() == "Literal")
        or _is_for_types_alone(node)
        or _is_noise(above, is_called)
    )


def _is_for_types_alone(node: Any) -> bool:
    """Whether a node is `if TYPE_CHECKING:` without `else`, or a method of a `Protocol` that does nothing."""
    if node.type == "if_stmt":
        return len(node.children) == 4 and node.children[1].get_code().strip() == "TYPE_CHECKING"
    inner = node.children[-1] if node.type == "decorated" else node
    owner = inner.search_ancestor("classdef") if inner.type == "funcdef" else None
    bases = owner and owner.get_super_arglist()
    if not bases or "Protocol" not in re.findall(r"\w+", bases.get_code()):
        return False
    (method,) = ast.parse(inner.get_code(include_prefix=False)).body
    assert isinstance(method, ast.FunctionDef)
    return all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in method.body)
