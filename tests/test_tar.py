"""Tars read as streams: the same cube as from folders, whatever comes in whatever order."""

from __future__ import annotations

import bz2
import functools
import http.server
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bigearth_cube.archive import open_archive
from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.archive.tar import TarSource, View
from bigearth_cube.archive.tarstream import members
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.ingest import IngestReport, assemble, ingest, stream
from bigearth_cube.ingest import run as run_module
from bigearth_cube.storage import Storage
from tests.tars import Files, files_of, write_tar

TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"

V2 = ("BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps")
V1 = ("BigEarthNet-v1.0", "BigEarthNet-S1-v1.0")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic archives of both versions, as folders ``v1`` and ``v2``."""
    folder = tmp_path_factory.mktemp("archives")
    for version in ("v1", "v2"):
        write_archive(folder / version, archive=version, n_patches=300, seed=4, workers=1)  # type: ignore[arg-type]
    return folder


def lists_of(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.iterdir()) if path.is_file()]


def shortened(lists: Sequence[str], names: Collection[str], folder: Path) -> list[str]:
    """Copy the first thousand lines of official lists, and all that speak of ``names``."""
    written = []
    for path in lists:
        copy = folder / Path(path).name
        if path.endswith(".parquet"):
            table = pq.read_table(path)
            known = pc.is_in(table["patch_id"], pa.array(sorted(names)))
            keep = pc.or_(known, pa.array(np.arange(len(table)) < 1000))
            pq.write_table(table.filter(keep), copy)
        else:
            with bz2.open(path, "rt") as source, bz2.open(copy, "wt") as target:
                target.writelines(
                    line
                    for number, line in enumerate(source)
                    if number < 1000 or not names.isdisjoint(line.rstrip().split(","))
                )
        written.append(str(copy))
    return written


@pytest.fixture(scope="module")
def tars(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Gives the tars of a version, and its lists."""
    folder = tmp_path_factory.mktemp("tars")
    for version, names, suffix in (("v1", V1, ".tar.gz"), ("v2", V2, ".tar.zst")):
        for name in names:
            write_tar(folder / f"{name}{suffix}", files_of(archives / version / name))

    def of(version: str) -> list[str]:
        names, suffix = (V1, ".tar.gz") if version == "v1" else (V2, ".tar.zst")
        return [str(folder / f"{n}{suffix}") for n in names] + lists_of(archives / version)

    return of


def stored(url: str) -> dict[str, bytes]:
    """Every object of a cube that does not name its files or the time."""
    storage = Storage(url)
    return {
        key: storage.read(key)
        for key, _ in storage.list()
        if not key.startswith("ingest/") and key != "cube.zarr/zarr.json"
    }


def assert_balanced(report: IngestReport) -> None:
    for kind, account in report.accounts.items():
        assert account.balanced, kind


@pytest.fixture(scope="module")
def from_folders(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Cubes of the folders, by version."""
    urls = {}
    for version in ("v1", "v2"):
        urls[version] = str(tmp_path_factory.mktemp("cubes") / version)
        ingest([str(archives / version)], urls[version], workers=2)
    return urls


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tars_give_the_cube_that_folders_give(
    version: str,
    tars: Callable[[str], list[str]],
    from_folders: dict[str, str],
    tmp_path: Path,
) -> None:
    told: list[tuple[int, int]] = []
    report = ingest(tars(version), str(tmp_path), progress=lambda *now: told.append(now))
    assert_balanced(report)
    assert report.accounts["s2"].found == report.accounts["s1"].ingested == 300
    assert stored(str(tmp_path)) == stored(from_folders[version])
    cube = open_cube(str(tmp_path))
    assert [fault for _, fault in cube.verify(cube.recorded_objects()) if fault] == []
    assert told[-1] == (told[-1][1],) * 2
    assert told[-1][1] == (900 if version == "v2" else 600)
    again = ingest(tars(version), str(tmp_path))
    assert again.release is None
    assert_balanced(again)


def test_rows_without_views_are_the_same_objects_from_tars_and_from_folders(
    archives: Path, tars: Callable[[str], list[str]], tmp_path: Path
) -> None:
    write_archive(tmp_path / "few", archive="v2", n_patches=20, seed=5, workers=1)
    s2_tar, *_ = tars("v2")
    sources = {"tar": s2_tar, "folder": str(archives / "v2" / V2[0])}
    for form, source in sources.items():
        ingest([str(tmp_path / "few")], str(tmp_path / form), workers=1)
        report = ingest([source, *lists_of(archives / "v2")], str(tmp_path / form), workers=1)
        assert report.release == "r2"
    assert stored(str(tmp_path / "tar")) == stored(str(tmp_path / "folder"))


def shuffled(files: Files, seed: int) -> Files:
    names = list(files)
    random.Random(seed).shuffle(names)
    return {name: files[name] for name in names}


@pytest.mark.parametrize("memory_bytes", [pytest.param(1, marks=pytest.mark.slow), 30 << 20])
def test_no_memory_and_no_order_give_the_same_bytes_and_leave_nothing_spilled(
    memory_bytes: int,
    archives: Path,
    from_folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assemble, "MEMORY_BYTES", memory_bytes)
    spilled: list[str] = []
    write = assemble.Assembler._write_spilled

    def noted(self: assemble.Assembler, number: int, encoded: Any) -> None:
        spilled.append(f"{self._kind}/{number}")
        write(self, number, encoded)

    monkeypatch.setattr(assemble.Assembler, "_write_spilled", noted)
    names = V2 if memory_bytes > 1 else V2[1:2] + V2[:1]
    files = {path: data for n in names for path, data in files_of(archives / "v2" / n).items()}
    tar = write_tar(tmp_path / "mixed.tar.zst", shuffled(files, 1))
    report = ingest(
        [tar, *lists_of(archives / "v2")], str(tmp_path / "cube"), spill=str(tmp_path / "spill")
    )
    assert_balanced(report)
    assert spilled
    assert Storage(tmp_path / "spill").list() == []
    found, expected = stored(str(tmp_path / "cube")), stored(from_folders["v2"])
    pixels = [key for key in found if "/s2/r" in key or "/s1/r10m/backscatter" in key]
    assert len(pixels) > 20
    assert all(found[key] == expected[key] for key in pixels)


class KilledError(Exception):
    """Ends a run in the middle."""


@pytest.mark.parametrize("after", [1, 250, 450, 899])
def test_a_killed_run_goes_on_and_parses_nothing_twice_that_was_kept(
    after: int,
    tars: Callable[[str], list[str]],
    from_folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assemble, "MEMORY_BYTES", 1)  # whatever is not open lies in the spill
    views = TarSource.views

    def dying(self: TarSource, only: Any = None) -> Iterator[View]:
        for number, view in enumerate(views(self, only)):
            if number == after:
                raise KilledError
            yield view

    with monkeypatch.context() as patched:
        patched.setattr(TarSource, "views", dying)
        with pytest.raises(KilledError):
            ingest(tars("v2"), str(tmp_path))
    with pytest.raises(NotFoundError, match="no cube"):
        open_cube(str(tmp_path))
    parsed: list[str] = []
    read = stream.read_view

    def counted(record: Any, kind: Any, *arguments: Any) -> Any:
        parsed.append(kind)
        return read(record, kind, *arguments)

    monkeypatch.setattr(stream, "read_view", counted)
    report = ingest(tars("v2"), str(tmp_path))
    assert_balanced(report)
    # At most one open chunk a kind was lost: 64 views.
    assert 900 - after <= len(parsed) <= 900 - after + 3 * 64
    assert stored(str(tmp_path)) == stored(from_folders["v2"])
    assert not [key for key, _ in Storage(tmp_path).list("ingest") if "spill" in key]


def test_a_run_killed_at_its_end_parses_nothing_again_though_views_are_absent(
    archives: Path,
    tars: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s2, s1, _, *lists = tars("v2")
    files = files_of(archives / "v2" / V2[1])
    kept = sorted({Path(path).parent.name for path in files})[20:]
    some = {path: data for path, data in files.items() if Path(path).parent.name in kept}
    fewer = write_tar(tmp_path / "BigEarthNet-S1.tar.zst", some)

    def dying(*_: Any) -> Any:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "finish", dying)
        with pytest.raises(KilledError):
            ingest([s2, fewer, *lists], str(tmp_path / "cube"))
    parsed: list[str] = []
    read = stream.read_view

    def counted(record: Any, kind: Any, *arguments: Any) -> Any:
        parsed.append(kind)
        return read(record, kind, *arguments)

    monkeypatch.setattr(stream, "read_view", counted)
    shutil.copytree(tmp_path / "cube", tmp_path / "mended")
    report = ingest([s2, fewer, *lists], str(tmp_path / "cube"))
    assert parsed == []
    assert report.accounts["s1"].ingested == len(kept) == 280
    # The whole tar has another size: what was absent is looked for again.
    report = ingest([s2, s1, *lists], str(tmp_path / "mended"))
    assert report.accounts["s1"].ingested == 300


def test_a_run_killed_with_all_its_threads_goes_on_to_the_same_bytes(
    tars: Callable[[str], list[str]], from_folders: dict[str, str], tmp_path: Path
) -> None:
    url = tmp_path / "cube"
    command = [sys.executable, "-m", "bigearth_cube", "ingest", *tars("v2"), str(url)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list(url.glob("ingest/r1/shards/*.json")) and time.monotonic() < until:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (url / "cube.zarr" / "zarr.json").exists()
    # What a killed write leaves in a folder.
    (url / "cube.zarr" / "s2" / "left#1").write_bytes(b"half of it")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resumed: " in done.stdout
    assert stored(str(url)) == stored(from_folders["v2"])
    assert list(url.rglob("*#*")) == []


def test_faults_in_a_tar_are_set_aside_and_the_accounts_balance(
    archives: Path, tmp_path: Path
) -> None:
    files = {p: d for n in V2 for p, d in files_of(archives / "v2" / n).items()}
    s2 = sorted({p.rsplit("/", 1)[0] for p in files if p.startswith("BigEarthNet-S2")})
    s1 = sorted({p.rsplit("/", 1)[0] for p in files if p.startswith("BigEarthNet-S1")})

    def file(folder: str, tail: str) -> str:
        return f"{folder}/{folder.rsplit('/', 1)[1]}_{tail}"

    files[file(s2[0], "B04.tif")] = files[file(s2[0], "B04.tif")][:500]
    del files[file(s2[1], "B8A.tif")]
    files[file(s1[2], "VH.tif")] = b""
    odd = "BigEarthNet-S2/S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP/no_patch_at_all"
    files[f"{odd}/no_patch_at_all_B02.tif"] = b"x"
    twice = s2[3].replace("BigEarthNet-S2/", "copy/BigEarthNet-S2/")
    files |= {p.replace(s2[3], twice): d for p, d in files.items() if p.startswith(f"{s2[3]}/")}
    tar = write_tar(tmp_path / "all.tar.zst", files)
    lists = lists_of(archives / "v2")
    report = ingest([tar, *lists], str(tmp_path / "cube"))
    assert_balanced(report)
    assert report.accounts["s2"].found == 302
    assert report.accounts["s2"].ingested == 298
    reasons = {q.id: q.reason for q in report.quarantined}
    assert "lacks B8A" in reasons[s2[1].rsplit("/", 1)[1]]
    assert "B04" in reasons[s2[0].rsplit("/", 1)[1]]
    assert "VH" in reasons[s1[2].rsplit("/", 1)[1]]
    assert "second time" in reasons[s2[3].rsplit("/", 1)[1]]
    assert "does not parse" in reasons["no_patch_at_all"]
    assert {o.source for o in report.orphans} == {"s1", "reference"}
    cube = open_cube(str(tmp_path / "cube"))
    assert s2[0].rsplit("/", 1)[1] not in cube.items["id"].to_pylist()
    assert cube.column("s1/r10m/present").sum() == report.accounts["s1"].ingested
    again = ingest([tar, *lists], str(tmp_path / "cube"))
    assert again.release is None
    assert_balanced(again)
    # Repaired, what was set aside joins.
    whole = {p: d for n in V2 for p, d in files_of(archives / "v2" / n).items()}
    write_tar(tmp_path / "all.tar.zst", whole)
    repaired = ingest([tar, *lists], str(tmp_path / "cube"))
    assert repaired.release == "r2"
    assert open_cube(str(tmp_path / "cube")).n_patches == 300


@pytest.fixture(scope="module")
def planned_tars(
    tars: Callable[[str], list[str]],
) -> Callable[[Sequence[str]], TarSource]:
    """Gives a source of v2 tars whose rows are planned from the lists."""

    def of(urls: Sequence[str]) -> TarSource:
        lists = [path for path in tars("v2") if path.endswith(".parquet")]
        return TarSource("v2", urls, lists, from_lists=True)

    return of


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_tars_beside_their_lists_are_read_once_and_give_the_same_cube(
    version: str,
    tars: Callable[[str], list[str]],
    from_folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = open_archive(tars(version))
    opened: list[str] = []

    def counted(url: str) -> Iterator[Any]:
        opened.append(Path(url).name)
        return members(url)

    monkeypatch.setattr("bigearth_cube.archive.tar.members", counted)
    report = ingest(source, str(tmp_path))
    expected = [Path(path).name for path in tars(version) if ".tar" in path]
    assert sorted(opened) == sorted(expected)  # each once
    assert_balanced(report)
    assert (report.n_rows, report.n_absent, report.n_unlabeled) == (300, 0, 0)
    assert stored(str(tmp_path)) == stored(from_folders[version])


@pytest.mark.slow
def test_a_killed_run_of_v1_knows_all_labels_when_it_has_gone_on(
    tars: Callable[[str], list[str]],
    from_folders: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assemble, "MEMORY_BYTES", 1)
    views = TarSource.views

    def dying(self: TarSource, only: Any = None) -> Iterator[View]:
        for number, view in enumerate(views(self, only)):
            if number == 310:
                raise KilledError
            yield view

    with monkeypatch.context() as patched:
        patched.setattr(TarSource, "views", dying)
        with pytest.raises(KilledError):
            ingest(tars("v1"), str(tmp_path))
    report = ingest(tars("v1"), str(tmp_path))
    assert report.resumed_shards
    assert stored(str(tmp_path)) == stored(from_folders["v1"])


def test_a_cube_that_another_run_makes_while_lists_are_read_is_added_to(
    tars: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s2, s1, _, *lists = tars("v2")
    check = run_module.check_source

    def meanwhile(*arguments: Any) -> None:
        check(*arguments)
        monkeypatch.setattr(run_module, "check_source", check)
        ingest([s2, *lists], str(tmp_path))

    monkeypatch.setattr(run_module, "check_source", meanwhile)
    report = ingest([s2, s1, *lists], str(tmp_path))
    assert_balanced(report)
    assert report.release == "r2"
    assert open_cube(str(tmp_path)).n_patches == report.n_rows
    assert report.accounts["s1"].ingested == report.accounts["s1"].found > 0


def test_what_is_wrong_with_the_json_of_v1_is_found_in_the_stream(
    archives: Path, tmp_path: Path
) -> None:
    files = files_of(archives / "v1" / V1[0])
    folders = sorted({path.rsplit("/", 1)[0] for path in files})
    names = [folder.rsplit("/", 1)[1] for folder in folders]
    json_of = [f"{f}/{n}_labels_metadata.json" for f, n in zip(folders, names, strict=True)]
    del files[json_of[0]]
    files[json_of[1]] = b"{"
    files[json_of[2]] = files[json_of[2]].replace(b"_T", b"_T01CCV_", 1)
    moved = json.loads(files[json_of[3]])
    moved["coordinates"] = {key: value + 1200 for key, value in moved["coordinates"].items()}
    files[json_of[3]] = json.dumps(moved).encode()
    unlisted = f"{names[5].rsplit('_', 2)[0]}_90_90"
    files |= {
        path.replace(names[5], unlisted): data for path, data in files.items() if names[5] in path
    }
    files = {path: data for path, data in files.items() if names[4] not in path}
    tar = write_tar(tmp_path / "BigEarthNet-S2-v1.0.tar.gz", files)
    sources = [tar, *lists_of(archives / "v1")]
    source = open_archive(sources)
    report = ingest(source, str(tmp_path / "cube"))
    assert source.from_lists  # type: ignore[attr-defined]
    assert_balanced(report)
    assert (report.n_rows, report.n_absent, report.n_unlabeled) == (295, 1, 0)
    reasons = {q.id: q.reason for q in report.quarantined}
    assert reasons[names[0]] == "is missing"
    assert "does not parse as JSON" in reasons[names[1]]
    assert "the list of tiles says" in reasons[names[2]]
    assert "is off the grid" in reasons[names[3]]
    assert reasons[unlisted] == "no list that was given names it"
    cube = open_cube(str(tmp_path / "cube"))
    assert [fault for _, fault in cube.verify(cube.recorded_objects()) if fault] == []
    # The next run looks at names, as the cube is there; what no list names is as bad to it.
    again = ingest(sources, str(tmp_path / "cube"))
    assert_balanced(again)
    assert (again.n_absent, again.n_rows, again.release) == (1, 295, None)


def test_a_tar_far_smaller_than_its_lists_is_looked_into_first(
    archives: Path, tmp_path: Path
) -> None:
    files = files_of(archives / "v2" / "BigEarthNet-S2")
    few = sorted({path.rsplit("/", 1)[0] for path in files})[:5]
    tar = write_tar(
        tmp_path / "BigEarthNet-S2.tar.zst",
        {path: data for path, data in files.items() if path.rsplit("/", 1)[0] in few},
    )
    sources = [tar, *lists_of(archives / "v2")]
    report = ingest(sources, str(tmp_path / "cube"))
    assert_balanced(report)
    assert (report.n_rows, report.n_absent) == (5, 295)
    ids = [folder.rsplit("/", 1)[1] for folder in few]
    cube = open_cube(str(tmp_path / "cube"))
    assert sorted(cube.items["id"].to_pylist()) == ids
    assert len(cube.rows) == cube.rows[-1] + 1  # no padding among them


def test_a_square_that_no_table_holds_is_measured_in_a_first_pass(
    archives: Path, tmp_path: Path
) -> None:
    import pyarrow as pa

    lists = lists_of(archives / "v2")
    table = pq.read_table(next(path for path in lists if path.endswith("metadata.parquet")))
    first = {**table.to_pylist()[0], "patch_id": f"{TILE[:-5]}01CCV_00_00", "s1_name": None}
    more = tmp_path / "metadata.parquet"
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([first], table.schema)]), more)
    tar = write_tar(tmp_path / "BigEarthNet-S2.tar", files_of(archives / "v2" / "BigEarthNet-S2"))
    others = [path for path in lists if not path.endswith("metadata.parquet")]
    source = open_archive([tar, str(more), *others])
    report = ingest(source, str(tmp_path / "cube"))
    assert not source.from_lists  # type: ignore[attr-defined]
    assert (report.n_rows, report.n_absent) == (300, 1)


def test_what_lists_promise_and_tars_lack_is_absent_and_the_rest_is_accounted_for(
    planned_tars: Callable[[Sequence[str]], TarSource], archives: Path, tmp_path: Path
) -> None:
    s2, s1 = (files_of(archives / "v2" / name) for name in V2[:2])
    folders = sorted({path.rsplit("/", 1)[0] for path in s2})
    names = [folder.rsplit("/", 1)[1] for folder in folders]
    s2 = {path: data for path, data in s2.items() if not path.startswith(f"{folders[0]}/")}
    del s2[f"{folders[1]}/{names[1]}_B11.tif"]
    again = folders[2].replace("BigEarthNet-S2/", "BigEarthNet-S2/more/")
    s2 |= {p.replace(folders[2], again): d for p, d in s2.items() if f"{folders[2]}/" in p}
    unlisted = f"{names[3][:-5]}90_90"
    s2 |= {
        p.replace(names[3], unlisted): d for p, d in s2.items() if p.startswith(f"{folders[3]}/")
    }
    s2["BigEarthNet-S2/tile/odd/odd_B02.tif"] = b"x"
    urls = [
        write_tar(tmp_path / f"{name}.tar.zst", files)
        for name, files in zip(V2, (s2, s1), strict=False)
    ]
    source = planned_tars(urls)
    with pytest.raises(InvalidInputError, match="1 patches that the lists hold are absent"):
        ingest(source, str(tmp_path / "refused"), require_complete=True)
    report = ingest(source, str(tmp_path / "cube"))
    assert_balanced(report)
    assert (report.n_rows, report.n_absent) == (298, 1)
    assert report.accounts["s2"].found == 299 + 3
    reasons = {q.id: q.reason for q in report.quarantined}
    assert "lacks B11" in reasons[names[1]]
    assert reasons[names[2]] == "the same patch a second time"
    assert reasons[unlisted] == "no list that was given names it"
    assert "does not parse" in reasons["odd"]
    assert len(report.orphans) == 2
    cube = open_cube(str(tmp_path / "cube"))
    assert [fault for _, fault in cube.verify(cube.recorded_objects()) if fault] == []
    assert not {names[0], names[1]} & set(cube.items["id"].to_pylist())


def test_what_no_list_names_is_taken_up_unlabeled_by_the_next_run(
    archives: Path, tars: Callable[[str], list[str]], tmp_path: Path
) -> None:
    s2_tar, *_ = tars("v2")
    lists = lists_of(archives / "v2")
    whole = next(path for path in lists if path.endswith("metadata.parquet"))
    table = pq.read_table(whole)
    pq.write_table(table.slice(1), tmp_path / "metadata.parquet")
    sources = [s2_tar, str(tmp_path / "metadata.parquet"), *(p for p in lists if p != whole)]
    url = str(tmp_path / "cube")
    first = ingest(sources, url)
    assert_balanced(first)
    assert (first.release, first.n_rows, len(first.quarantined)) == ("r1", 299, 1)
    second = ingest(sources, url)
    assert_balanced(second)
    assert (second.release, second.n_rows, second.n_unlabeled) == ("r2", 300, 1)
    items = open_cube(url).items
    unlabeled = items.filter(pc.is_null(items["bec:labels"]))["id"].to_pylist()
    assert unlabeled == table["patch_id"][:1].to_pylist()


@pytest.mark.slow
def test_a_spill_folder_serves_several_cubes_and_never_mixes_them(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "MEMORY_BYTES", 1)
    write_archive(tmp_path / "other", archive="v2", n_patches=300, seed=5, workers=1)
    sources = [
        [
            write_tar(tmp_path / f"{i}.tar", files_of(folder / "BigEarthNet-S2")),
            *lists_of(folder),
        ]
        for i, folder in enumerate((archives / "v2", tmp_path / "other"))
    ]
    spill = str(tmp_path / "spill")
    views = TarSource.views

    def dying(self: TarSource, only: Any = None) -> Iterator[View]:
        for number, view in enumerate(views(self, only)):
            if number == 200:
                raise KilledError
            yield view

    with monkeypatch.context() as patched:
        patched.setattr(TarSource, "views", dying)
        with pytest.raises(KilledError):
            ingest(sources[0], str(tmp_path / "a"), spill=spill)
    assert Storage(spill).list()
    ingest(sources[1], str(tmp_path / "b"), spill=spill)
    ingest([str(tmp_path / "other" / "BigEarthNet-S2"), *sources[1][1:]], str(tmp_path / "c"))
    assert stored(str(tmp_path / "b")) == stored(str(tmp_path / "c"))


def test_a_spill_folder_is_found_again_and_emptied_by_a_run_that_does_not_name_it(
    archives: Path,
    from_folders: dict[str, str],
    tars: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(assemble, "MEMORY_BYTES", 1)
    views = TarSource.views

    def dying(self: TarSource, only: Any = None) -> Iterator[View]:
        for number, view in enumerate(views(self, only)):
            if number == 200:
                raise KilledError
            yield view

    for place in ("one", "two"):
        with monkeypatch.context() as patched:
            patched.setattr(TarSource, "views", dying)
            with pytest.raises(KilledError):
                ingest(tars("v2"), str(tmp_path / "cube"), spill=str(tmp_path / place))
        assert Storage(tmp_path / place).list()
    ingest(tars("v2"), str(tmp_path / "cube"))
    assert not Storage(tmp_path / "one").list() + Storage(tmp_path / "two").list()
    ingest(tars("v2"), str(tmp_path / "undisturbed"))
    names = [{key for key, _ in Storage(tmp_path / n).list()} for n in ("cube", "undisturbed")]
    assert names[0] == names[1]
    assert stored(str(tmp_path / "cube")) == stored(from_folders["v2"])


def test_what_is_repaired_between_a_killed_run_and_the_next_goes_in(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p: d for n in V2[:2] for p, d in files_of(archives / "v2" / n).items()}
    broken = next(path for path in files if path.endswith("_VH.tif"))
    tar, lists = tmp_path / "all.tar", lists_of(archives / "v2")
    write_tar(tar, {**files, broken: b""})
    finish = run_module.finish
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "finish", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            ingest([str(tar), *lists], str(tmp_path / "cube"))
    assert run_module.finish is finish
    write_tar(tar, files)
    report = ingest([str(tar), *lists], str(tmp_path / "cube"))
    assert_balanced(report)
    assert (report.accounts["s1"].ingested, report.quarantined) == (300, ())


def test_a_member_twice_in_a_tar_is_one_patch(archives: Path, tmp_path: Path) -> None:
    tar = tmp_path / "BigEarthNet-S2.tar"
    write_tar(tar, files_of(archives / "v2" / "BigEarthNet-S2"))
    with tarfile.open(tar) as read, tarfile.open(tar, "a") as append:
        for member in [m for m in read.getmembers() if m.isfile()][:12]:
            append.addfile(member, read.extractfile(member))
    report = ingest([str(tar), *lists_of(archives / "v2")], str(tmp_path / "cube"))
    assert_balanced(report)
    assert report.n_rows == 300


def test_a_run_refused_for_what_was_absent_goes_on_when_it_is_there(
    planned_tars: Callable[[Sequence[str]], TarSource], archives: Path, tmp_path: Path
) -> None:
    files = files_of(archives / "v2" / "BigEarthNet-S2")
    folder = next(iter(files)).rsplit("/", 1)[0]
    tar = tmp_path / "BigEarthNet-S2.tar.zst"
    write_tar(tar, {p: d for p, d in files.items() if not p.startswith(f"{folder}/")})
    with pytest.raises(InvalidInputError, match="1 patches that the lists hold are absent"):
        ingest(planned_tars([str(tar)]), str(tmp_path / "cube"), require_complete=True)
    write_tar(tar, files)
    report = ingest(planned_tars([str(tar)]), str(tmp_path / "cube"), require_complete=True)
    assert_balanced(report)
    assert (report.n_rows, report.n_absent) == (300, 0)


def test_without_lists_v2_has_no_labels_and_v1_has_those_of_its_json(
    tars: Callable[[str], list[str]], tmp_path: Path
) -> None:
    v2 = ingest(tars("v2")[:1], str(tmp_path / "v2"))
    assert (v2.n_rows, v2.n_unlabeled) == (300, 300)
    v1 = ingest(tars("v1")[:2], str(tmp_path / "v1"))
    assert (v1.n_rows, v1.n_unlabeled) == (300, 0)
    assert v1.accounts["s1"].ingested == 300


def test_a_tar_is_read_from_any_url(
    tars: Callable[[str], list[str]],
    from_folders: dict[str, str],
    bucket: str,
    s3_options: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_options["endpoint_url"])
    sources = []
    for path in tars("v2"):
        if path.endswith(".zst"):
            sources.append(f"{bucket}/{Path(path).name}")
            with fsspec.open(sources[-1], "wb") as file:
                file.write(Path(path).read_bytes())
        else:
            sources.append(path)
    ingest(sources, f"{bucket}/cube")
    cube = open_cube(f"{bucket}/cube")
    expected = open_cube(from_folders["v2"])
    assert cube.release.digest == expected.release.digest
    key = f"cube.zarr/{cube.pixel_layout('s2/r10m').key(0)}"
    assert cube.storage.read(key) == expected.storage.read(key)


class _Web(http.server.SimpleHTTPRequestHandler):
    """A server of files, with or without ranges; what is named ``broken`` ends early."""

    ranges = False

    def send_head(self) -> Any:
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if not path.is_file():
            self.send_error(404)
            return None
        data = path.read_bytes()
        first, last = 0, len(data) - 1
        said = self.headers.get("Range")
        if said and self.ranges:
            low, _, high = said.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if said and self.ranges else 200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        part = data[first : last + 1]
        return io.BytesIO(part[: len(part) // 2] if "broken" in self.path else part)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(params=[False, True], ids=["in one go", "by ranges"])
def web(
    request: pytest.FixtureRequest, tars: Callable[[str], list[str]]
) -> Iterator[Callable[[str], str]]:
    """Give the URL of a file beside the tars of v2, as a site for downloads writes it."""
    folder = str(Path(tars("v2")[0]).parent)
    handler = type("Handler", (_Web,), {"ranges": request.param})
    serve = functools.partial(handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.server_address[1]
        yield lambda name: f"http://127.0.0.1:{port}/{name}?download=1"
        server.shutdown()
        thread.join()


def test_tars_and_lists_are_read_from_a_web_site(
    web: Callable[[str], str],
    tars: Callable[[str], list[str]],
    from_folders: dict[str, str],
    tmp_path: Path,
) -> None:
    names = [Path(path).name for path in tars("v2")]
    for path in tars("v2"):
        served = Path(tars("v2")[0]).parent / Path(path).name
        if not served.exists():
            shutil.copy(path, served)
    report = ingest([web(name) for name in names], str(tmp_path / "cube"))
    assert_balanced(report)
    assert stored(str(tmp_path / "cube")) == stored(from_folders["v2"])
    with pytest.raises(NotFoundError, match=r"nothing\.tar\.zst.* does not exist"):
        ingest([web("nothing.tar.zst")], str(tmp_path / "none"))
    with pytest.raises(NotFoundError, match=r"metadata\.parquet.* does not exist"):
        ingest([tars("v2")[0], web("nowhere/metadata.parquet")], str(tmp_path / "none"))


def test_a_site_that_breaks_off_is_told_and_the_next_run_goes_on(
    web: Callable[[str], str], tars: Callable[[str], list[str]], tmp_path: Path
) -> None:
    served = Path(tars("v2")[0]).parent / "broken"
    served.mkdir(exist_ok=True)
    name = Path(tars("v2")[0]).name
    shutil.copy(tars("v2")[0], served / name)
    with pytest.raises((StorageError, InvalidInputError), match=r"cannot be read|damaged"):
        ingest([web(f"broken/{name}")], str(tmp_path / "cube"))
    assert ingest([web(name)], str(tmp_path / "cube")).n_rows == 300


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["TAR2", "FOLDER"], "name folders or tars, not both"),
        (["TAR2", "TAR1"], "each has its own cube"),
        (["EMPTY"], "no patch in it"),
        (["/no/such.tar.zst"], "does not exist"),
        (["TAR1", "LIST2"], "is a list of v2, but the patches are of v1"),
    ],
)
def test_wrong_sources_are_refused_in_one_line(
    sources: Sequence[str],
    message: str,
    tars: Callable[[str], list[str]],
    archives: Path,
    tmp_path: Path,
) -> None:
    names = {
        "TAR1": tars("v1")[0],
        "TAR2": tars("v2")[0],
        "LIST2": tars("v2")[-1],
        "FOLDER": str(archives / "v2"),
        "EMPTY": write_tar(tmp_path / "empty.tar", {"readme.txt": b"nothing"}),
    }
    with pytest.raises((InvalidInputError, NotFoundError), match=message) as caught:
        open_archive([names.get(source, source) for source in sources])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.samples
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_samples_in_tars_give_the_cube_of_their_folders(
    version: str, samples: Path, tmp_path: Path
) -> None:
    names = V1 if version == "v1" else V2
    sources = [
        write_tar(tmp_path / f"{name}.tar.zst", files_of(samples / version / name))
        for name in names
    ]
    lists = lists_of(samples / "metadata")
    lists = [path for path in lists if path.endswith(".parquet") == (version == "v2")]
    lists = [path for path in lists if not path.endswith("ids.csv")]
    lists = shortened(
        lists, {p.name for n in names for p in (samples / version / n).rglob("*")}, tmp_path
    )
    folders = [str(samples / version / name) for name in names]
    by_tar = ingest([*sources, *lists], str(tmp_path / "a"))
    by_folder = ingest([*folders, *lists], str(tmp_path / "b"))
    assert_balanced(by_tar)
    assert by_tar.accounts == by_folder.accounts
    assert by_tar.n_absent == by_folder.n_absent
    assert stored(str(tmp_path / "a")) == stored(str(tmp_path / "b"))
    cube = open_cube(str(tmp_path / "a"))
    assert np.isfinite(cube.tree["s1/r10m"]["backscatter"].values).any()
