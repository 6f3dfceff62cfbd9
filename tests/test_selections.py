"""Frozen selections: what they hold, and which they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.search import Selection, search
from tests.items import INDEX, ITEMS, ROWS, TABLE

# printf 'bigearthnet-v2\nr1\nS2A_a\nS2A_b\nS2B_ä\n' | sha256sum
GOLDEN = "4951dd23312415c03c8e0cb0dd088c9ae48726d6f272247e791c67d1fd73ae30"


def _selection(rows: Any = None, *, release: str = "r1", **query: Any) -> Selection:
    rows = search(INDEX, **query) if rows is None else rows
    return Selection.of(INDEX, rows, cube_id="mine", release=release, query=query)


def test_a_selection_has_the_rows_sorted_and_their_names() -> None:
    selection = _selection(ROWS[[7, 3, 5]])
    assert selection.rows.tolist() == sorted(ROWS[[7, 3, 5]].tolist())
    names = {int(row): item["id"] for row, item in zip(ROWS, ITEMS, strict=True)}
    assert selection.ids.to_pylist() == [names[row] for row in selection.rows.tolist()]
    assert len(selection) == 3


def test_rows_of_a_selection_cannot_be_changed() -> None:
    rows = np.sort(ROWS[:3])
    selection = _selection(rows)
    with pytest.raises(ValueError, match="read-only"):
        selection.rows[0] = 1
    rows[0] = 1  # the caller's own array stays theirs
    assert selection.rows[0] != 1


def test_the_digest_of_known_patches_never_changes() -> None:
    ids = pa.array(["S2A_b", "S2A_a", "S2B_ä"])
    selection = Selection("bigearthnet-v2", "r1", np.array([1, 2, 3]), ids)
    assert selection.digest == GOLDEN


@given(st.permutations(range(20)))
def test_the_digest_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    assert _selection(ROWS[order]).digest == _selection(ROWS[:20]).digest


def test_the_digest_depends_on_patches_release_and_cube_and_not_on_the_query() -> None:
    whole = _selection(ROWS)
    assert _selection(ROWS[1:]).digest != whole.digest
    assert _selection(ROWS, release="r2").digest != whole.digest
    assert Selection.of(INDEX, ROWS, cube_id="other", release="r1") != whole
    assert _selection(filter="TRUE") == _selection() == whole
    assert hash(_selection()) == hash(whole)


def test_a_selection_survives_saving_and_loading(tmp_path: Path) -> None:
    selection = _selection(split="train", bbox=[-10, 36, 20, 60], ids=None)
    for url in (str(tmp_path / "run" / "train.parquet"), "memory://runs/train.parquet"):
        selection.save(url)
        again = Selection.load(url)
        assert again == selection
        assert again.rows.tolist() == selection.rows.tolist()
        assert again.ids.equals(selection.ids)
        assert again.query == {"split": "train", "bbox": [-10, 36, 20, 60]}
        assert (again.cube_id, again.release) == ("mine", "r1")


def test_an_empty_selection_is_a_selection(tmp_path: Path) -> None:
    selection = _selection(ids=[])
    selection.save(str(tmp_path / "none.parquet"))
    assert len(Selection.load(str(tmp_path / "none.parquet"))) == 0


def test_a_process_that_ends_right_after_loading_one_ends_in_order(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    _selection().save(str(path))
    code = f"import bigearth_cube.search as s; s.Selection.load({str(path)!r}); raise SystemExit(2)"
    ends = [subprocess.run([sys.executable, "-c", code], check=False).returncode for _ in range(4)]
    assert ends == [2] * 4


def test_a_changed_selection_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    _selection().save(str(path))
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(CubeIntegrityError, match="digest"):
        Selection.load(str(path))


def _rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def test_what_is_no_selection_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "other.parquet")
    for name, change in {
        "no-rows": lambda table: table.drop_columns("bec:row"),
        "null-id": lambda table: table.set_column(0, "id", pa.nulls(len(table), pa.string())),
        "text-row": lambda table: table.set_column(1, "bec:row", table["id"]),
    }.items():
        _selection().save(str(tmp_path / f"{name}.parquet"))
        _rewrite(tmp_path / f"{name}.parquet", change)
    for name in sorted(file.name for file in tmp_path.iterdir()):
        with pytest.raises(InvalidInputError, match="no selection"):
            Selection.load(str(tmp_path / name))
    with pytest.raises(NotFoundError):
        Selection.load(str(tmp_path / "missing.parquet"))


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "memory://a", "run/", "s3://", ""])
def test_a_url_that_names_no_file_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (_selection().save, Selection.load):
        with pytest.raises(InvalidInputError, match=r"names no (file|bucket)|empty URL"):
            use(url)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_a_file_are_sorted_whatever_its_order(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    _selection().save(str(path))
    _rewrite(path, lambda table: table.take(np.random.default_rng(1).permutation(len(table))))
    again = Selection.load(str(path))
    assert again.rows_in(TABLE).tolist() == sorted(ROWS.tolist())
    assert again.ids.equals(_selection().ids)


def test_rows_that_hold_other_patches_than_the_names_say_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    selection = _selection(split="train")
    assert selection.rows_in(INDEX) is selection.rows
    assert selection.rows_in(TABLE.select(["bec:row", "id"])) is selection.rows
    selection.save(str(path))
    others = search(INDEX, split="test")
    rows = pa.array(np.r_[selection.rows[1:], others[0]])
    _rewrite(path, lambda table: table.set_column(1, "bec:row", rows))
    changed = Selection.load(str(path))
    assert changed.digest == selection.digest
    with pytest.raises(InvalidInputError, match=r"row \d+ is 'S2A_.*' in the cube and 'S2A_"):
        changed.rows_in(INDEX)
    with pytest.raises(InvalidInputError, match="no patch of release 'r1'"):
        Selection("mine", "r1", selection.rows + 1, selection.ids).rows_in(INDEX)


@pytest.mark.parametrize("rows", [[1], [int(ROWS[0]), 10**9], [-1]])
def test_rows_that_are_no_patches_are_refused(rows: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="no patch of release 'r1'"):
        _selection(np.array(rows))


def test_a_row_named_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="named twice"):
        _selection(ROWS[[0, 0]])
