"""CQL2 over the columns of an items table.

The cql2 library parses text and JSON; this evaluates the result with Arrow kernels, whose
three-valued logic is that of CQL2: a comparison with an unknown value is neither true nor
false, and ``NOT`` leaves it so.

A year, month or day stands for the whole of it, as in the argument ``datetime`` of a search:
``datetime = '2018-05'`` holds for any time in that May, ``<=`` for any up to its last microsecond,
``>`` for any after that; ``<`` and ``>=`` look at its first.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cql2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import RELATIONS, ItemIndex, Mask, parse_geometry, period
from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, NAMES_43, SEASONS, SPLITS

# The parser recurses: 3,000 open parentheses or 20,000 ANDs end the process. These bounds are
# far above what a person or a form writes and far below what the stack of a thread holds.
_MOST_NESTED: Final = 100
_MOST_OPERATORS: Final = 250

_SET_FUNCTIONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "a_contains": lambda ours, theirs: ours & theirs == theirs,
    "a_containedBy": lambda ours, theirs: ours | theirs == theirs,
    "a_equals": lambda ours, theirs: ours == theirs,
    "a_overlaps": lambda ours, theirs: ours & theirs != 0,
}
# What these may hold is known, so another value is a slip and not a question without an answer.
_VOCABULARIES: Final[Mapping[str, tuple[str, ...]]] = {
    "bec:country": COUNTRIES,
    "bec:labels": NAMES_19,
    "bec:labels_43": NAMES_43,
    "bec:season": SEASONS,
    "bec:split": SPLITS,
}
_SPATIAL_FUNCTIONS: Final = {f"s_{name}": name for name in RELATIONS}


def parse_filter(filter: str | Mapping[str, Any]) -> Any:
    r"""Parse CQL2 text or JSON into CQL2 JSON.

    Raises
    ------
    InvalidInputError
        If it is neither, or nests too deep; the message says where.

    Examples
    --------
    >>> parse_filter("\"bec:split\" = 'test'")
    {'op': '=', 'args': [{'property': 'bec:split'}, 'test']}
    """
    if isinstance(filter, str) and not filter.lstrip().startswith("{"):
        _check_depth(filter)
        try:
            return cql2.parse_text(filter).to_json()
        except cql2.ParseError as error:
            raise InvalidInputError(_parse_problem(filter, str(error))) from None
    try:
        text = filter if isinstance(filter, str) else json.dumps(filter)
        return cql2.parse_json(text).to_json()
    except (cql2.ParseError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"filter is no CQL2 JSON: {error}") from None


def _check_depth(text: str) -> None:
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "", text)
    depth = deepest = 0
    for bracket in re.findall(r"[()]", bare):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    # Coordinates ("-8.1 39.2") are not operators, however many there are.
    rest = re.sub(r"[(,]\s*-?[\d.]+(?:\s+-?[\d.]+)*\s*(?=[,)])", "", bare)
    n_operators = len(re.findall(r"\b(?:and|or|not|div)\b|[-+*/%^]", rest, re.IGNORECASE))
    if deepest > _MOST_NESTED or n_operators > _MOST_OPERATORS:
        raise InvalidInputError(
            f"filter has {n_operators} operators, {deepest} levels deep; at most "
            f"{_MOST_OPERATORS} and {_MOST_NESTED} are taken: use IN for many values"
        )


def _parse_problem(text: str, problem: str) -> str:
    place = re.search(r"--> (\d+):(\d+)", problem)
    if place is None:
        return f"filter is no CQL2 text: {problem.splitlines()[0] if problem else text!r}"
    line, column = int(place[1]), int(place[2])
    rest = text.splitlines()[line - 1][column - 1 :] if text.strip() else ""
    found = f"found {rest:.30}" if rest else "found its end"
    return f"filter, line {line}, column {column}: expected a condition or a value, {found}"


def evaluate(expression: Any, index: ItemIndex) -> Mask:
    """Find the items for which a parsed filter is true: neither false nor unknown.

    Raises
    ------
    InvalidInputError
        If it names an unknown property or operator, or compares what cannot be compared.
    """
    truth = _Evaluator(index).predicate(expression)
    if isinstance(truth, pa.Scalar):
        truth = pa.repeat(truth, len(index))
    found: Mask = pc.fill_null(truth, False).to_numpy(zero_copy_only=False)
    return found


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a comparison: its kind, its value or column, and how it was written.

    ``last`` is the last microsecond of a period, whose first is ``value``; else the value again.
    """

    kind: str
    value: Any
    name: str
    last: Any = None

    def __post_init__(self) -> None:
        if self.last is None:
            object.__setattr__(self, "last", self.value)


def _equal(a: _Operand, b: _Operand) -> Any:
    if a.kind != "time":
        return pc.equal(a.value, b.value)
    return pc.and_kleene(_COMPARISONS["<="](a, b), _COMPARISONS[">="](a, b))


_COMPARISONS: Final[Mapping[str, Callable[[_Operand, _Operand], Any]]] = {
    "=": _equal,
    "<>": lambda a, b: pc.invert(_equal(a, b)),
    "<": lambda a, b: pc.less(a.last, b.value),
    "<=": lambda a, b: pc.less_equal(a.value, b.last),
    ">": lambda a, b: pc.greater(a.value, b.last),
    ">=": lambda a, b: pc.greater_equal(a.last, b.value),
}
_OPERATORS: Final = ("and", "between", "in", "isNull", "like", "not", "or")
_BY_LOWER_CASE: Final = {
    name.lower(): name
    for name in (*_OPERATORS, *_COMPARISONS, *_SET_FUNCTIONS, *_SPATIAL_FUNCTIONS)
}


class _Evaluator:
    """CQL2 JSON over the columns of an index; predicates are Arrow booleans with nulls."""

    def __init__(self, index: ItemIndex) -> None:
        self._index = index

    def predicate(self, node: Any) -> Any:
        if isinstance(node, bool):
            return pa.scalar(node)
        if isinstance(node, Mapping) and "property" in node:
            operand = self._operand(node, node)
            if operand.kind != "boolean":
                raise _refusal(node, f"{operand.name} is no condition by itself; compare it")
            return operand.value
        if not isinstance(node, Mapping) or not isinstance(node.get("op"), str):
            raise _refusal(node, "expected a condition")
        op = _BY_LOWER_CASE.get(node["op"].lower())
        args = node.get("args")
        if op is None or not isinstance(args, list):
            raise _refusal(
                node,
                f"operator {node['op']!r} is not supported; choose one of: "
                f"{', '.join(sorted(_BY_LOWER_CASE.values()))}",
            )
        if op in ("and", "or"):
            combine = pc.and_kleene if op == "and" else pc.or_kleene
            if not args:
                raise _refusal(node, f"{op} needs conditions")
            result = self.predicate(args[0])
            for arg in args[1:]:
                result = combine(result, self.predicate(arg))
            return result
        _check_arity(node, op, args)
        if op == "not":
            return pc.invert(self.predicate(args[0]))
        if op in _SET_FUNCTIONS:
            return self._set_function(node, op, args)
        if op in _SPATIAL_FUNCTIONS:
            return self._spatial_function(node, op, args)
        try:
            return self._scalar_condition(node, op, args)
        except pa.ArrowException as error:
            problem = str(error).splitlines()[0]
            raise _refusal(node, f"{op} does not apply here: {problem}") from None

    def _scalar_condition(self, node: Any, op: str, args: list[Any]) -> Any:
        if op == "isNull":
            return pc.is_null(self._operand(args[0], node, any_kind=True).value)
        if op == "like":
            subject = self._operand(args[0], node)
            if subject.kind != "text" or not isinstance(args[1], str):
                raise _refusal(node, "LIKE compares text with a pattern such as 'S2A%'")
            return pc.match_like(subject.value, args[1])
        if op == "in":
            if not isinstance(args[1], list):
                raise _refusal(node, "IN needs a list of values")
            members = self._alike([args[0], *args[1]], node)
            self._check_values(node, members)
            return self._membership(node, *members)
        if op == "between":
            subject, low, high = self._alike(args, node)
            above, below = _COMPARISONS[">="](subject, low), _COMPARISONS["<="](subject, high)
            return pc.and_kleene(above, below)
        sides = self._alike(args, node)
        if op in ("=", "<>"):
            self._check_values(node, sides)
        return _COMPARISONS[op](*sides)

    def _check_values(self, node: Any, operands: list[_Operand]) -> None:
        """Refuse literals beside a property that never has them."""
        literals = [o.value.as_py() for o in operands if isinstance(o.value, pa.Scalar)]
        for operand in operands:
            if isinstance(operand.value, pa.Array):
                _check_known(node, operand.name, literals, operand.value.unique().to_pylist)

    def _membership(self, node: Any, subject: _Operand, *values: _Operand) -> Any:
        if not all(isinstance(value.value, pa.Scalar) for value in values):
            raise _refusal(node, "IN takes values, not properties")
        if subject.kind == "time" and values:
            return functools.reduce(pc.or_kleene, (_equal(subject, value) for value in values))
        known = pc.is_valid(subject.value)
        # As numbers are written, not as the column has them: 1.5 is no row, not row 1.
        kind = pa.float64() if subject.kind == "number" else subject.value.type
        wanted = pa.array([value.value.as_py() for value in values], kind)
        found = pc.is_in(pc.cast(subject.value, kind), wanted)
        return pc.if_else(known, found, pa.scalar(None, pa.bool_()))

    def _set_function(self, node: Any, op: str, args: list[Any]) -> Any:
        name = args[0].get("property") if isinstance(args[0], Mapping) else None
        if self._operand(args[0], node, any_kind=True).kind != "list" or name is None:
            raise _refusal(node, f"{op} takes a property that is a list, then values")
        wanted = args[1] if isinstance(args[1], list) else [args[1]]
        if not all(isinstance(value, str) for value in wanted):
            raise _refusal(node, f"{op} takes texts, e.g. ('Pastures', 'Arable land')")
        names, members, known = self._index.sets(name)
        _check_known(node, name, wanted, lambda: names)
        # Names no row has share one more bit, which no row has set.
        bits = [names.index(value) if value in names else len(names) for value in wanted]
        theirs = functools.reduce(lambda acc, bit: acc | 1 << bit, bits, 0)
        unseen = theirs >> len(names) & 1
        theirs &= (1 << len(names)) - 1
        hits = _SET_FUNCTIONS[op](members, np.uint64(theirs))
        if unseen and op in ("a_contains", "a_equals"):
            hits = np.zeros(len(members), bool)
        return pa.array(hits, mask=~known)

    def _spatial_function(self, node: Any, op: str, args: list[Any]) -> Any:
        first, second = args
        if first != {"property": "geometry"}:
            raise _refusal(node, f"{op} takes the property geometry, then a shape")
        shape = parse_geometry(second, _text(node))
        return pa.array(
            self._index.in_relation(_SPATIAL_FUNCTIONS[op], shape, np.ones(len(self._index), bool))
        )

    def _operand(self, node: Any, parent: Any, *, any_kind: bool = False) -> _Operand:
        if isinstance(node, Mapping) and "property" in node:
            name = node["property"]
            if name not in self._index.queryables:
                raise _refusal(
                    parent,
                    f"unknown property {name!r}; choose one of: "
                    f"{', '.join(self._index.queryables)}",
                )
            column = self._index.column(name)
            kind = _kind_of(column.type)
            if kind in ("list", "geometry") and not any_kind:
                function = "a_contains" if kind == "list" else "s_intersects"
                raise _refusal(parent, f"{name} is a {kind}; ask it with {function}")
            return _Operand(kind, column, name)
        if isinstance(node, bool):
            return _Operand("boolean", pa.scalar(node), str(node))
        if isinstance(node, int | float):
            return _Operand("number", pa.scalar(float(node)), f"{node:g}")
        if isinstance(node, str):
            return _Operand("text", pa.scalar(node), repr(node))
        if isinstance(node, Mapping) and len(node) == 1 and {*node} <= {"timestamp", "date"}:
            return _time_operand(next(iter(node.values())))
        raise _refusal(parent, "expected a property, a number, a text, a boolean or a time")

    def _alike(self, nodes: list[Any], parent: Any) -> list[_Operand]:
        """Give operands of one kind; a text literal beside a time is read as a time."""
        operands = [self._operand(node, parent) for node in nodes]
        if any(operand.kind == "time" for operand in operands):
            operands = [
                _time_operand(node) if isinstance(node, str) else operand
                for node, operand in zip(nodes, operands, strict=True)
            ]
        first = operands[0]
        for other in operands:
            if other.kind != first.kind:
                raise _refusal(
                    parent, f"{first.name} is a {first.kind}, {other.name} a {other.kind}"
                )
        return operands


def _check_known(
    node: Any, name: str, values: list[str], present: Callable[[], Sequence[str | None]]
) -> None:
    """Refuse values that are neither in the vocabulary of a property nor in its column."""
    vocabulary = _VOCABULARIES.get(name)
    for value in values:
        if vocabulary is None or value in vocabulary:
            continue
        known = sorted({*vocabulary, *filter(None, present())})
        if value not in known:
            choices = dict.fromkeys([*difflib.get_close_matches(value, known), *known])
            raise _refusal(node, f"{name} is never {value!r}; choose one of: {', '.join(choices)}")


def _time_operand(text: Any) -> _Operand:
    first, last = (pa.scalar(edge, pa.timestamp("us", "UTC")) for edge in period(text, text))
    return _Operand("time", first, repr(text), last)


def _kind_of(kind: pa.DataType) -> str:
    tests = {
        "text": pa.types.is_string,
        "boolean": pa.types.is_boolean,
        "time": pa.types.is_timestamp,
        "list": pa.types.is_list,
        "geometry": pa.types.is_binary,
    }
    return next((name for name, test in tests.items() if test(kind)), "number")


def _check_arity(node: Any, op: str, args: list[Any]) -> None:
    wanted = {"not": 1, "isNull": 1, "between": 3}.get(op, 2)
    if len(args) != wanted:
        raise _refusal(node, f"{op} takes {wanted} arguments, found {len(args)}")


def _refusal(node: Any, problem: str) -> InvalidInputError:
    return InvalidInputError(f"filter, at {_text(node)}: {problem}")


def _text(node: Any) -> str:
    """Write an expression as a person would, for messages."""
    as_json = json.dumps(node, default=str)
    try:
        text = cql2.parse_json(as_json).to_text()
    except (cql2.ParseError, ValueError):
        text = as_json
    return text if len(text) <= 120 else text[:117] + "..."
