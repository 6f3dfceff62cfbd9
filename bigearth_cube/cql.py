"""CQL2 over the columns of an items table.

The cql2 library parses text and JSON; this evaluates the result in the three-valued logic of
CQL2: a comparison with an unknown value is neither true nor false, and ``NOT`` leaves it so. Text
of few values is asked value by value and then looked up by code; sets of labels are bits.

A year, month or day stands for the whole of it, as in the argument ``datetime`` of a search:
``datetime = '2018-05'`` holds for any time in that May, ``<=`` for any up to its last microsecond,
``>`` for any after that; ``<`` and ``>=`` look at its first.
"""

from __future__ import annotations

import difflib
import functools
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import cql2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigearth_cube.errors import InvalidInputError
from bigearth_cube.item_index import (
    RELATIONS,
    ItemIndex,
    Mask,
    Places,
    parse_geometry,
    period,
    taken,
)
from bigearth_cube.nomenclature import COUNTRIES, NAMES_19, NAMES_43, SEASONS, SPLITS

# The parser recurses: 3,000 open parentheses or 5,000 comparisons in a row end the process. These
# bounds are far above what a person or a form writes and far below what the stack of a thread holds.
_MOST_NESTED: Final = 100
_MOST_OPERATORS: Final = 500
_OPERATOR: Final = re.compile(
    r"(?<![a-z_:])(?:and|or|not|div|like|between|in|is)(?![a-z_:])|[<=>]+|[-+*/%^|]", re.IGNORECASE
)
_NUMBER: Final = r"-?[\d.]+(?:e[-+]?\d+)?"
_COORDINATES: Final = re.compile(rf"[(,]\s*{_NUMBER}(?:\s+{_NUMBER})*\s*(?=[,)])", re.IGNORECASE)
_MOST_COSTLY: Final = 10
"""Patterns and shapes in one filter: each may look at every name or footprint, which takes 0.1 s."""

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
        _check_text(filter)
        try:
            return _bounded(cql2.parse_text(filter).to_json())
        except (cql2.ParseError, UnicodeError) as error:
            raise InvalidInputError(_parse_problem(filter, str(error))) from None
    try:
        text = filter if isinstance(filter, str) else json.dumps(filter)
        parsed = cql2.parse_json(text).to_json()
    except (cql2.ParseError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"filter is no CQL2 JSON: {error}") from None
    return _bounded(parsed)


def _bounded(parsed: Any) -> Any:
    """Return a filter, if answering it takes no more than a few seconds of a large table."""
    n_operators = n_costly = 0
    left = [parsed]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left += node
        elif isinstance(node, Mapping) and "op" in node:
            n_operators += 1
            n_costly += str(node["op"]).lower() in _COSTLY
            left.append(node.get("args"))
    if n_operators > _MOST_OPERATORS or n_costly > _MOST_COSTLY:
        raise InvalidInputError(
            f"filter has {n_operators} operators, {n_costly} of them patterns or shapes; at most "
            f"{_MOST_OPERATORS} and {_MOST_COSTLY} are taken"
        )
    return parsed


def _check_text(text: str) -> None:
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "", text)
    depth = deepest = 0
    for bracket in re.findall(r"[()]", bare):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    # Coordinates ("-8.1 39.2") are not operators, however many there are.
    rest = _COORDINATES.sub("", bare)
    n_operators = len(_OPERATOR.findall(rest))
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


def evaluate(expression: Any, index: ItemIndex, at: Places | None = None) -> Mask:
    """Say of each item whether a parsed filter is true of it: neither false nor unknown.

    Parameters
    ----------
    expression
        What ``parse_filter`` gave.
    index
        The items.
    at
        Places to look at; all of them where it is None.

    Raises
    ------
    InvalidInputError
        If it names an unknown property or operator, or compares what cannot be compared.
    """
    return _Evaluator(index, at).predicate(expression).true


def conjuncts(expression: Any) -> list[Any]:
    """Conditions that a filter joins by AND; itself where it is one condition."""
    args = expression.get("args") if isinstance(expression, Mapping) else None
    if not args or not isinstance(args, list) or str(expression.get("op")).lower() != "and":
        return [expression]
    return [condition for arg in args for condition in conjuncts(arg)]


def shapes_required(expression: Any) -> list[Any]:
    """Shapes that whatever a filter finds must meet: those of conditions joined by AND."""
    found = []
    for node in conjuncts(expression):
        args = node.get("args") if isinstance(node, Mapping) else None
        if isinstance(args, list) and len(args) == 2 and str(node.get("op")).lower() in _MEETING:
            others = [arg for arg in args if arg != _GEOMETRY]
            found += [parse_geometry(arg, _text(node)) for arg in others if len(others) == 1]
    return found


@dataclass(frozen=True, slots=True)
class _Truth:
    """Where a condition is true, and where it is unknown (None: nowhere); elsewhere it is false."""

    true: Mask
    unknown: Mask | None = None

    def __and__(self, other: _Truth) -> _Truth:
        true = self.true & other.true
        if self.unknown is None and other.unknown is None:
            return _Truth(true)
        return _Truth(true, self._possible() & other._possible() & ~true)

    def __or__(self, other: _Truth) -> _Truth:
        true = self.true | other.true
        if self.unknown is None and other.unknown is None:
            return _Truth(true)
        return _Truth(true, (self._possible() | other._possible()) & ~true)

    def __invert__(self) -> _Truth:
        return _Truth(~self._possible(), self.unknown)

    def _possible(self) -> Mask:
        return self.true if self.unknown is None else self.true | self.unknown


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a comparison: its kind, how it was written, its value unless it is a property.

    ``last`` is the last microsecond of a period, whose first is ``value``; else the value again.
    """

    kind: str
    name: str
    value: Any = None
    last: Any = None


_Compare = Callable[[Any, Any], Any]
_COMPARISONS: Final[Mapping[str, tuple[_Compare, Any]]] = {
    "=": (operator.eq, pc.equal),
    "<>": (operator.ne, pc.not_equal),
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}
_MIRRORED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_GEOMETRY: Final = {"property": "geometry"}
_TURNED: Final = {
    "s_within": "s_contains",
    "s_contains": "s_within",
    "a_containedBy": "a_contains",
    "a_contains": "a_containedBy",
}
_OPERATORS: Final = ("and", "between", "in", "isNull", "like", "not", "or")
_BY_LOWER_CASE: Final = {
    name.lower(): name
    for name in (*_OPERATORS, *_COMPARISONS, *_SET_FUNCTIONS, *_SPATIAL_FUNCTIONS)
}
_COSTLY: Final = frozenset({"like", *(name.lower() for name in _SPATIAL_FUNCTIONS)})
_MEETING: Final = frozenset(_SPATIAL_FUNCTIONS) - {"s_disjoint"}


class _Evaluator:
    """CQL2 JSON over the columns of an index, at some places."""

    def __init__(self, index: ItemIndex, at: Places | None) -> None:
        self._index = index
        self._at = at
        self._n = len(index) if at is None else len(at)

    def predicate(self, node: Any) -> _Truth:
        if isinstance(node, bool):
            return self._constant(node)
        if isinstance(node, Mapping) and "property" in node:
            subject = self._operand(node, node)
            if subject.kind != "boolean":
                raise _refusal(node, f"{subject.name} is no condition by itself; compare it")
            values, unknown = self._values(subject)
            return _Truth(values if unknown is None else values & ~unknown, unknown)
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
            if not args:
                raise _refusal(node, f"{op} needs conditions")
            combine = operator.and_ if op == "and" else operator.or_
            return functools.reduce(combine, map(self.predicate, args))
        if op == "between" and len(args) == 2 and isinstance(args[1], list):
            args = [args[0], *args[1]]  # as drafts of CQL2 had it, and clients still send it
        _check_arity(node, op, args)
        if op == "not":
            return ~self.predicate(args[0])
        if op in _SET_FUNCTIONS:
            return self._set_function(node, op, args)
        if op in _SPATIAL_FUNCTIONS:
            return self._spatial_function(node, op, args)
        try:
            return self._scalar_condition(node, op, args)
        except pa.ArrowException as error:
            problem = str(error).splitlines()[0]
            raise _refusal(node, f"{op} does not apply here: {problem}") from None

    def _constant(self, truth: bool | None) -> _Truth:
        true = np.full(self._n, bool(truth))
        return _Truth(true, ~true if truth is None else None)

    def _scalar_condition(self, node: Any, op: str, args: list[Any]) -> _Truth:
        if op == "isNull":
            return self._is_null(self._operand(args[0], node, any_kind=True))
        if op == "like":
            subject = self._operand(args[0], node)
            if subject.kind != "text" or not isinstance(args[1], str):
                raise _refusal(node, "LIKE compares text with a pattern such as 'S2A%'")
            return self._of_text(subject, lambda texts: pc.match_like(texts, args[1]))
        if op == "in":
            if not isinstance(args[1], list):
                raise _refusal(node, "IN needs a list of values")
            subject, *members = self._alike([args[0], *args[1]], node)
            self._check_values(node, [subject, *members])
            if any(member.value is None for member in members):
                raise _refusal(node, "IN takes values, not properties")
            return self._membership(subject, members)
        if op == "between":
            subject, low, high = self._alike(args, node)
            return self._compare(">=", subject, low) & self._compare("<=", subject, high)
        sides = self._alike(args, node)
        if op in ("=", "<>"):
            self._check_values(node, sides)
        return self._compare(op, *sides)

    def _check_values(self, node: Any, operands: list[_Operand]) -> None:
        """Refuse literals beside a property that never has them."""
        literals = [o.value for o in operands if o.value is not None]
        for operand in operands:
            if operand.value is None and operand.kind == "text":
                present = functools.partial(self._texts_present, operand.name)
                _check_known(node, operand.name, literals, present)

    def _texts_present(self, name: str) -> list[str]:
        coded = self._index.codes(name)
        values = self._index.column(name).unique() if coded is None else coded[0]
        return list(values.to_pylist())

    # --- the kinds of values

    def _values(self, subject: _Operand) -> tuple[Any, Mask | None]:
        """Numbers, booleans or times of a property; a literal is its own value."""
        if subject.value is not None:
            return subject.value, None
        values, unknown = self._index.values(subject.name)
        return taken(values, self._at), None if unknown is None else taken(unknown, self._at)

    def _of_text(self, subject: _Operand, test: Callable[[Any], Any]) -> _Truth:
        """Ask each text; where there are few, each of them once."""
        if subject.value is not None:
            return self._constant(test(pa.array([subject.value], pa.string()))[0].as_py())
        coded = self._index.codes(subject.name)
        if coded is None:
            return _of_arrow(test(self._texts(subject)))
        answers = test(coded[0]).to_numpy(zero_copy_only=False)
        codes = taken(coded[1], self._at)
        hits = np.flatnonzero(answers)
        # A comparison of codes is ten times as fast as a look into the answers.
        true = codes == hits[0] if len(hits) == 1 else np.append(answers, False)[codes]
        unknown = codes == len(coded[0]) if self._index.column(subject.name).null_count else None
        return _Truth(true, unknown)

    def _texts(self, subject: _Operand) -> Any:
        if subject.value is not None:
            return pa.scalar(subject.value)
        column = self._index.column(subject.name)
        return column if self._at is None else column.take(pa.array(self._at))

    def _compare(self, op: str, first: _Operand, second: _Operand) -> _Truth:
        compare, kernel = _COMPARISONS[op]
        if first.kind == "text":
            if second.value is not None:
                return self._of_text(first, lambda texts: kernel(texts, second.value))
            if first.value is not None:
                other = _COMPARISONS[_MIRRORED.get(op, op)][1]
                return self._of_text(second, lambda texts: other(texts, first.value))
            return _of_arrow(kernel(self._texts(first), self._texts(second)))
        if first.kind == "time" and op in ("=", "<>"):
            same = self._compare("<=", first, second) & self._compare(">=", first, second)
            return same if op == "=" else ~same
        if first.kind == "time":  # an end of a period, of whichever side is one
            first = _at_end(first, last=op in ("<", ">="))
            second = _at_end(second, last=op in ("<=", ">"))
        (ours, unknown), (theirs, also_unknown) = self._values(first), self._values(second)
        true = np.broadcast_to(np.asarray(compare(ours, theirs)), (self._n,))
        lacking = [mask for mask in (unknown, also_unknown) if mask is not None]
        if not lacking:
            return _Truth(true)
        either = functools.reduce(np.logical_or, lacking)
        return _Truth(true & ~either, either)

    def _membership(self, subject: _Operand, members: list[_Operand]) -> _Truth:
        if subject.kind == "text":
            wanted = pa.array([member.value for member in members], pa.string())
            return self._of_text(subject, lambda texts: _in_set(texts, wanted))
        lacking = self._is_null(subject).true
        found = np.zeros(self._n, bool)
        if members:
            # A member may be a period; of those that begin by then, the longest decides.
            spans = sorted((member.value, member.last) for member in members)
            firsts, lasts = (np.array(ends) for ends in zip(*spans, strict=True))
            values = np.broadcast_to(self._values(subject)[0], (self._n,))
            before = np.searchsorted(firsts, values, side="right") - 1
            found = (before >= 0) & (values <= np.maximum.accumulate(lasts)[before]) & ~lacking
        return _Truth(found, lacking if lacking.any() else None)

    def _is_null(self, subject: _Operand) -> _Truth:
        if subject.value is not None:
            return self._constant(False)
        column = self._index.column(subject.name)
        if not column.null_count:
            return self._constant(False)
        lacking = (
            column.is_null() if self._at is None else column.take(pa.array(self._at)).is_null()
        )
        return _of_arrow(lacking)

    def _set_function(self, node: Any, op: str, args: list[Any]) -> _Truth:
        if isinstance(args[1], Mapping) and "property" in args[1]:
            args, op = args[::-1], _TURNED.get(op, op)
        name = args[0].get("property") if isinstance(args[0], Mapping) else None
        if self._operand(args[0], node, any_kind=True).kind != "list" or name is None:
            raise _refusal(node, f"{op} takes a property that is a list, and values")
        wanted = args[1] if isinstance(args[1], list) else [args[1]]
        if not all(isinstance(value, str) for value in wanted):
            raise _refusal(node, f"{op} takes texts, e.g. ('Pastures', 'Arable land')")
        names, members, unknown = self._index.sets(name)
        members = taken(members, self._at)
        _check_known(node, name, wanted, lambda: names)
        # Names no row has share one more bit, which no row has set.
        bits = [names.index(value) if value in names else len(names) for value in wanted]
        theirs = functools.reduce(lambda acc, bit: acc | 1 << bit, bits, 0)
        unseen = theirs >> len(names) & 1
        theirs &= (1 << len(names)) - 1
        hits = _SET_FUNCTIONS[op](members, members.dtype.type(theirs))
        if unseen and op in ("a_contains", "a_equals"):
            hits = np.zeros(len(members), bool)
        if unknown is None:
            return _Truth(hits)
        unknown = taken(unknown, self._at)
        return _Truth(hits & ~unknown, unknown)

    def _spatial_function(self, node: Any, op: str, args: list[Any]) -> _Truth:
        first, second = args
        if second == _GEOMETRY:
            first, second, op = second, first, _TURNED.get(op, op)
        if first != _GEOMETRY:
            raise _refusal(node, f"{op} takes the property geometry and a shape")
        shape = parse_geometry(second, _text(node))
        return _Truth(self._index.in_relation(_SPATIAL_FUNCTIONS[op], shape, self._at))

    def _operand(self, node: Any, parent: Any, *, any_kind: bool = False) -> _Operand:
        if isinstance(node, Mapping) and "property" in node:
            name = node["property"]
            if name not in self._index.queryables:
                raise _refusal(
                    parent,
                    f"unknown property {name!r}; choose one of: "
                    f"{', '.join(self._index.queryables)}",
                )
            kind = _kind_of(self._index.table.schema.field(name).type)
            if kind in ("list", "geometry") and not any_kind:
                function = "a_contains" if kind == "list" else "s_intersects"
                raise _refusal(parent, f"{name} is a {kind}; ask it with {function}")
            return _Operand(kind, name)
        if isinstance(node, bool):
            return _Operand("boolean", str(node), node, node)
        if isinstance(node, int | float):
            return _Operand("number", f"{node:g}", float(node), float(node))
        if isinstance(node, str):
            return _Operand("text", repr(node), node, node)
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


def _of_arrow(answers: Any) -> _Truth:
    unknown = answers.is_null().to_numpy(zero_copy_only=False) if answers.null_count else None
    return _Truth(pc.fill_null(answers, False).to_numpy(zero_copy_only=False), unknown)


def _in_set(texts: pa.Array, wanted: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_valid(texts), pc.is_in(texts, wanted), pa.scalar(None, pa.bool_()))


def _at_end(operand: _Operand, *, last: bool) -> _Operand:
    return replace(operand, value=operand.last) if last else operand


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
    return _Operand("time", repr(text), *period(text, text))


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
