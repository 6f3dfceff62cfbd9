"""Sentinel-1 and reference maps that come after their rows, alone or beside new patches."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from bigearth_cube.archive import Patch, PatchRecord
from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cli import main
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import IngestReport, ingest
from bigearth_cube.loader.batches import BatchLoader
from tests.sources import MemorySource, index_of, pixels_of

GROUPS = ("s2/r10m", "s2/r20m", "s2/r60m", "s1/r10m", "reference/r10m")


class KilledError(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic archives of both versions, as folders ``v1`` and ``v2``, and their tars."""
    folder = tmp_path_factory.mktemp("archives")
    for version in ("v1", "v2"):
        write_archive(folder / version, archive=version, n_patches=300, seed=6, workers=1)  # type: ignore[arg-type]
        for name in (path for path in (folder / version).iterdir() if path.is_dir()):
            with tarfile.open(folder / f"{name.name}.tar", "w") as tar:
                tar.add(name, name.name)
    return folder


def assert_balanced(report: IngestReport) -> None:
    for kind, account in report.accounts.items():
        assert account.balanced, (kind, account)


def assert_same_pixels(found: Cube, expected: Cube) -> None:
    for group in found.layout.groups:
        name = "clc" if group.startswith("ref") else None
        name = name or ("backscatter" if group.startswith("s1") else "reflectance")
        np.testing.assert_array_equal(found.tree[group][name], expected.tree[group][name])


def sound(cube: Cube) -> bool:
    return not [fault for _, fault in cube.verify(cube.recorded_objects()) if fault]


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_a_cube_of_sentinel_2_gains_the_rest_without_touching_it(
    version: str, form: str, archives: Path, tmp_path: Path
) -> None:
    lists = [str(path) for path in (archives / version).iterdir() if path.is_file()]

    def source(name: str) -> str:
        return str(archives / (f"{name}.tar" if form == "tar" else f"{version}/{name}"))

    names = {
        "v1": ["BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"],
        "v2": ["BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps"],
    }[version]
    url = str(tmp_path / "cube")
    ingest([source(names[0]), *lists], url)
    first = open_cube(url)
    before = {
        key: first.storage.read(key) for key, _ in first.storage.list() if "/s2/" in f"/{key}"
    }
    for number, name in enumerate(names[1:], start=2):
        report = ingest([source(name)], url)
        assert_balanced(report)
        assert report.release == f"r{number}"
        assert report.n_rows == 300
        kind = "s1" if "S1" in name else "reference"
        assert report.accounts[kind].ingested == report.accounts[kind].found == 300  # type: ignore[index]
        again = ingest([source(name)], url)
        assert again.release is None
        assert again.accounts == report.accounts
    cube = open_cube(url)
    assert sound(cube)
    shards = {key: data for key, data in before.items() if "/c/" in key and "band" not in key}
    assert shards
    assert all(cube.storage.read(key) == data for key, data in shards.items())

    whole_url = str(tmp_path / "whole")
    ingest([str(archives / version)], whole_url)
    whole = open_cube(whole_url)
    assert cube.layout.groups == whole.layout.groups
    assert_same_pixels(cube, whole)
    for column in ("s1/r10m/present", "s1/r10m/id", "s1/r10m/acquired"):
        np.testing.assert_array_equal(cube.column(column), whole.column(column))
    assert cube.items.equals(whole.items)
    assert cube.search(split="train").rows.tolist() == whole.search(split="train").rows.tolist()

    old = open_cube(url, release="r1")
    assert old.layout.groups == first.layout.groups == GROUPS[:3]
    assert old.items.equals(first.items)
    assert "s1/r10m" not in old.tree.groups


def test_any_source_may_bring_views_late_beside_new_patches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path)
    ingest(MemorySource(300, with_views=False), url, workers=1)
    source = MemorySource(340, without_s1=frozenset({4, 310}))
    report = ingest(source, url, workers=1)
    assert_balanced(report)
    assert (report.release, report.n_rows) == ("r2", 340)
    assert report.accounts["s1"].ingested == 338
    cube = open_cube(url)
    assert sound(cube)
    ids = dict(zip(cube.items["bec:row"].to_pylist(), cube.items["id"].to_pylist(), strict=True))
    assert sorted(ids) == cube.rows.tolist()
    with BatchLoader(cube, batch_size=32, groups=GROUPS, shuffle="none") as loader:
        for batch in loader.epoch(0):
            for i in (0, len(batch.rows) - 1):
                index = index_of(ids[int(batch.rows[i])])
                expected = pixels_of(index, with_s1=index not in source.without_s1)
                np.testing.assert_array_equal(batch.images["s2/r60m"][i], expected.s2["s2/r60m"])
                np.testing.assert_array_equal(batch.images["reference/r10m"][i], expected.clc)
                if expected.s1 is None:
                    assert np.isnan(batch.images["s1/r10m"][i]).all()
                else:
                    np.testing.assert_array_equal(batch.images["s1/r10m"][i], expected.s1)
    main(["releases", url])
    shown = capsys.readouterr().out
    assert "(late)" in shown
    again = ingest(source, url, workers=1)
    assert again.release is None
    assert again.accounts == report.accounts


def test_views_of_a_shard_that_was_written_without_them_stay_orphans(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(MemorySource(300, without_s1=frozenset(range(20))), url, workers=1)
    report = ingest(MemorySource(300), url, workers=1)
    assert report.release is None
    assert_balanced(report)
    assert (report.accounts["s1"].ingested, report.accounts["s1"].orphans) == (280, 20)
    assert {o.reason for o in report.orphans} == {"its row was published without it"}


def test_rows_without_views_leave_their_shards_open_for_a_run_that_may_be_killed(
    tmp_path: Path,
) -> None:
    class Dying(MemorySource):
        def read(self, record: PatchRecord) -> Patch:
            if "VV" in record.files and index_of(record.id) == 44:
                raise KilledError
            return super().read(record)

    url = str(tmp_path)
    ingest(MemorySource(20), url, workers=1)
    ingest(MemorySource(25, first=20, with_views=False), url, workers=1)
    cube = open_cube(url)
    assert cube.release.arrays == GROUPS[:3]
    keys = [key for key, _ in cube.storage.list("cube.zarr")]
    shards = {group: [k for k in keys if f"{group}/" in k and "/c/1/" in k] for group in GROUPS}
    assert [len(shards[group]) for group in GROUPS] == [1, 1, 1, 0, 0]
    with pytest.raises(KilledError):
        ingest(Dying(45), url, workers=1)
    assert sound(open_cube(url))
    report = ingest(MemorySource(45), url, workers=1)
    assert_balanced(report)
    assert (report.release, report.accounts["s1"].ingested) == ("r3", 45)
    assert sound(open_cube(url))


def test_a_late_view_that_cannot_be_read_is_quarantined(archives: Path, tmp_path: Path) -> None:
    lists = [str(path) for path in (archives / "v2").iterdir() if path.is_file()]
    url, radar = str(tmp_path / "cube"), tmp_path / "BigEarthNet-S1"
    ingest([str(archives / "v2/BigEarthNet-S2"), *lists], url)
    with tarfile.open(archives / "BigEarthNet-S1.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    broken = sorted(radar.rglob("*_VV.tif"))[7]
    broken.write_bytes(b"")
    report = ingest([str(radar)], url)
    assert_balanced(report)
    assert (report.accounts["s1"].ingested, report.accounts["s1"].quarantined) == (299, 1)
    assert report.quarantined[0].file == str(broken)
    assert open_cube(url).column("s1/r10m/present").sum() == 299


@pytest.mark.parametrize("form", ["v2/BigEarthNet-S1", "BigEarthNet-S1.tar", "Reference_Maps.tar"])
def test_views_without_a_cube_to_join_are_refused(
    form: str, archives: Path, tmp_path: Path
) -> None:
    lists = [str(path) for path in (archives / "v2").iterdir() if path.is_file()]
    with pytest.raises(InvalidInputError, match="ingest their Sentinel-2 patches first"):
        ingest([str(archives / form), *lists], str(tmp_path / "cube"))
    assert not (tmp_path / "cube").exists() or not list((tmp_path / "cube").rglob("*.json"))


def test_a_shard_of_which_no_late_view_is_sound_stays_open(archives: Path, tmp_path: Path) -> None:
    lists = [str(path) for path in (archives / "v2").iterdir() if path.is_file()]
    url, radar = str(tmp_path / "cube"), tmp_path / "BigEarthNet-S1"
    ingest([str(archives / "v2/BigEarthNet-S2"), *lists], url)
    with tarfile.open(archives / "BigEarthNet-S1.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    sound_files = {path: path.read_bytes() for path in radar.rglob("*_VH.tif")}
    for path in sound_files:
        path.write_bytes(b"")
    report = ingest([str(radar)], url)
    assert_balanced(report)
    assert (report.release, report.accounts["s1"].quarantined) == (None, 300)
    for path, data in sound_files.items():
        path.write_bytes(data)
    report = ingest([str(radar)], url)
    assert_balanced(report)
    assert (report.release, report.accounts["s1"].ingested) == ("r2", 300)
    assert sound(open_cube(url))


def test_a_malformed_patch_of_any_source_does_not_end_a_late_run(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(MemorySource(70, with_views=False), url, workers=1)
    report = ingest(MemorySource(70, malformed=frozenset({5})), url, workers=1)
    assert_balanced(report)
    assert (report.accounts["s1"].ingested, report.accounts["s1"].quarantined) == (69, 1)


def test_a_second_sentinel_1_patch_for_a_row_is_refused(archives: Path, tmp_path: Path) -> None:
    url, radar = str(tmp_path / "cube"), tmp_path / "BigEarthNet-S1-v1.0"
    ingest([str(archives / "v1/BigEarthNet-v1.0")], url)
    with tarfile.open(archives / "BigEarthNet-S1-v1.0.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    first = min(path for path in radar.iterdir() if path.is_dir())
    parts = first.name.split("_")
    parts[4] = parts[4][:-1] + str((int(parts[4][-1]) + 1) % 10)
    second = first.with_name("_".join(parts))
    second.mkdir()
    for file in first.iterdir():
        (second / file.name.replace(first.name, second.name)).write_bytes(file.read_bytes())
    report = ingest([str(radar)], url)
    assert_balanced(report)
    assert [orphan.id for orphan in report.orphans if "already" in orphan.reason] in (
        [first.name],
        [second.name],
    )
    again = ingest([str(radar)], url)
    assert_balanced(again)


def test_lists_may_be_required_complete_of_source_and_cube_together(
    archives: Path, tmp_path: Path
) -> None:
    lists = [str(path) for path in (archives / "v2").iterdir() if path.is_file()]
    url = str(tmp_path)
    ingest([str(archives / "v2/BigEarthNet-S2"), *lists], url)
    report = ingest([str(archives / "v2/BigEarthNet-S1"), *lists], url, require_complete=True)
    assert (report.n_absent, report.accounts["s1"].ingested) == (0, 300)


def test_embeddings_and_later_releases_live_beside_late_views(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(MemorySource(40, with_views=False), url, workers=1)
    cube = open_cube(url)
    vectors = np.ones((cube.n_rows, 3), np.float32)
    cube.write_embeddings("model", vectors)
    ingest(MemorySource(40), url, workers=1)
    ingest(MemorySource(30, first=40), url, workers=1)
    ingest(MemorySource(20, first=70, with_views=False), url, workers=1)
    report = ingest(MemorySource(90), url, workers=1)
    assert_balanced(report)
    now = open_cube(url)
    assert [(r.name, r.restates) for r in now.releases] == [
        ("r1", False),
        ("r2", True),
        ("r3", False),
        ("r4", False),
        ("r5", True),
    ]
    assert sound(now)
    assert sorted(now.items["bec:row"].to_pylist()) == now.rows.tolist()
    assert now.column("s1/r10m/present").sum() == 90
    np.testing.assert_array_equal(now.embeddings("model")[: len(vectors)], vectors)
    for name, n in (("r1", 40), ("r2", 40), ("r3", 70), ("r4", 90)):
        old = open_cube(url, release=name)
        assert len(old.items) == old.n_patches == n
