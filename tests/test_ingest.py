"""From an archive to a cube: accounts balance, runs resume, nothing half-written is seen."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from bigearth_cube.archive import Patch, PatchRecord, SetAside
from bigearth_cube.archive.catalog_only import open_lists
from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError, StorageError
from bigearth_cube.ingest import IngestReport, ingest
from bigearth_cube.ingest.plan import make_plan, row_order
from bigearth_cube.loader.batches import BatchLoader
from bigearth_cube.lock import LOCK, utc_now
from bigearth_cube.nomenclature import NAMES_19
from bigearth_cube.storage import Storage
from bigearth_cube.writer import CubeWriter
from tests.sources import MemorySource, index_of, labels_of, pixels_of


def assert_balanced(report: IngestReport) -> None:
    for kind, account in report.accounts.items():
        assert account.found == account.ingested + account.orphans + account.quarantined, kind


def objects_of(url: str) -> dict[str, bytes]:
    """Every object of a cube; the time of a release is the one thing that may differ."""
    storage = Storage(url)
    content = {}
    for key, _ in storage.list():
        data = storage.read(key)
        if key == "cube.zarr/zarr.json":
            continue
        content[key] = data
    root = json.loads(storage.read("cube.zarr/zarr.json"))
    del root["attributes"]["crc32c"]
    for release in root["attributes"]["releases"]:
        release["created"] = ""
    content["cube.zarr/zarr.json"] = json.dumps(root).encode()
    return content


def test_a_malformed_patch_is_set_aside_and_the_rest_goes_in(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    source = MemorySource(300, malformed=frozenset({3, 290}), without_s1=frozenset({5}))
    report = ingest(source, str(tmp_path), client=dask_client)
    assert_balanced(report)
    s2, s1, maps = (report.accounts[kind] for kind in ("s2", "s1", "reference"))
    assert (s2.found, s2.ingested, s2.quarantined) == (300, 298, 2)
    assert (s1.found, s1.ingested, s1.orphans) == (299, 297, 2)
    assert (maps.found, maps.ingested, maps.orphans) == (300, 298, 2)
    cube = open_cube(str(tmp_path))
    ids = cube.items["id"].to_pylist()
    assert len(ids) == cube.n_patches == 298
    assert not {3, 290} & {index_of(i) for i in ids}
    table = pq.read_table(io.BytesIO(cube.storage.read("ingest/r1/quarantine.parquet")))
    assert {index_of(i) for i in table["id"].to_pylist()} == {3, 290}
    assert set(table["reason"].to_pylist()) == {"B02 is empty"}
    row = int(cube.rows[ids.index(next(i for i in ids if index_of(i) == 5))])
    assert not cube.column("s1/r10m/present")[row]
    assert cube.column("s1/r10m/present").sum() == 297


def test_a_second_run_finds_nothing_new_and_the_same_quarantine(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    source = MemorySource(40, malformed=frozenset({3}))
    ingest(source, str(tmp_path), client=dask_client)
    before = objects_of(str(tmp_path))
    report = ingest(source, str(tmp_path), client=dask_client)
    assert report.release is None
    assert_balanced(report)
    assert report.accounts["s2"].quarantined == 1
    assert report.accounts["s1"].orphans == 1
    assert objects_of(str(tmp_path)) == before


def test_a_patch_repaired_later_joins_with_the_next_run(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    ingest(MemorySource(40, malformed=frozenset({3})), str(tmp_path), client=dask_client)
    report = ingest(MemorySource(40), str(tmp_path), client=dask_client)
    assert report.release == "r2"
    assert_balanced(report)
    cube = open_cube(str(tmp_path))
    assert cube.n_patches == 40
    assert cube.rows[-1] == 256


def test_new_patches_are_a_new_release_and_the_old_one_opens_for_ever(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    url = str(tmp_path)
    ingest(MemorySource(300), url, client=dask_client)
    first = open_cube(url)
    shard = first.storage.read(f"cube.zarr/{first.pixel_layout('s2/r10m').key(1)}")
    report = ingest(MemorySource(70, first=280), url, client=dask_client)
    assert report.accounts["s2"].ingested == 70
    now, old = open_cube(url), open_cube(url, release="r1")
    assert (old.n_patches, old.n_rows) == (300, 512)
    assert (now.n_patches, now.n_rows) == (350, 768)
    assert now.storage.read(f"cube.zarr/{first.pixel_layout('s2/r10m').key(1)}") == shard
    assert [fault for _, fault in now.verify(now.recorded_objects()) if fault] == []
    for cube in (now, old):
        ids = cube.items["id"].to_pylist()
        for position in (0, len(ids) - 1):
            pixels = cube.tree["s2/r20m"]["reflectance"][position].values
            expected = pixels_of(index_of(ids[position])).s2["s2/r20m"]
            np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(now.labels("label_19", old.rows), old.labels("label_19"))


class KilledError(Exception):
    """Ends a run in the middle, as the death of a worker would."""


class DyingSource(MemorySource):
    """Dies on the patch that comes last in the cube."""

    def read(self, record: PatchRecord) -> Patch:
        if record.id == max(self.records(), key=row_order).id:
            raise KilledError
        return super().read(record)


def test_an_interrupted_run_is_invisible_and_resumes_to_the_same_bytes(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    undisturbed, broken = str(tmp_path / "a"), str(tmp_path / "b")
    assert_balanced(ingest(MemorySource(700), undisturbed, workers=1))
    with pytest.raises(KilledError):
        ingest(DyingSource(700), broken, workers=1)
    with pytest.raises(NotFoundError, match="no cube at"):
        open_cube(broken)
    finished = Storage(broken).list("ingest/r1/shards")
    assert finished
    report = ingest(MemorySource(700), broken, client=dask_client)
    assert report.resumed_shards == len(finished)
    assert objects_of(broken) == objects_of(undisturbed)


class CountedSource(MemorySource):
    """Counts how often it is pickled."""

    n_pickled = 0

    def __reduce_ex__(self, protocol: Any) -> Any:
        CountedSource.n_pickled += 1
        return super().__reduce_ex__(protocol)


def test_a_source_does_not_travel_with_every_shard(tmp_path: Path) -> None:
    """It went with each: 51,200 patches took 2.2 GB where 1.1 GB is enough."""
    ingest(CountedSource(1500), str(tmp_path), workers=1)
    assert CountedSource.n_pickled <= 1


def test_an_unfinished_run_of_other_patches_is_not_mixed_in(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    with pytest.raises(KilledError):
        ingest(DyingSource(700), str(tmp_path), workers=1)
    with pytest.raises(InvalidInputError, match="unfinished run of other patches"):
        ingest(MemorySource(10), str(tmp_path), client=dask_client)


def test_a_killed_run_that_adds_leaves_the_published_cube_as_it_was(tmp_path: Path) -> None:
    url = str(tmp_path)
    ingest(MemorySource(40), url, workers=1)
    before = objects_of(url)
    with pytest.raises(KilledError):
        ingest(DyingSource(700, first=40), url, workers=1)
    cube = open_cube(url)
    assert [fault for _, fault in cube.verify(cube.recorded_objects()) if fault] == []
    assert {key: data for key, data in objects_of(url).items() if key in before} == before


def test_what_is_repaired_before_publishing_is_read_again(tmp_path: Path) -> None:
    url = str(tmp_path)
    with pytest.raises(InvalidInputError, match="all 30 patches are in quarantine"):
        ingest(MemorySource(30, malformed=frozenset(range(30))), url, workers=1)
    report = ingest(MemorySource(30), url, workers=1)
    assert_balanced(report)
    assert (report.release, report.n_rows, report.resumed_shards) == ("r1", 30, 0)


def test_a_source_that_counts_wrongly_publishes_nothing(tmp_path: Path) -> None:
    class Miscounted(MemorySource):
        def found(self) -> Mapping[Any, int]:
            return {**super().found(), "s2": self.n_patches + 1}

    with pytest.raises(InvalidInputError, match="accounts do not balance for s2"):
        ingest(Miscounted(10), str(tmp_path), workers=1)
    with pytest.raises(NotFoundError, match="no cube"):
        open_cube(str(tmp_path))


def test_a_run_goes_on_from_what_was_published_while_it_looked(tmp_path: Path) -> None:
    url = str(tmp_path)

    class Slow(MemorySource):
        def records(self) -> Iterator[PatchRecord]:
            if not Storage(url).exists("cube.zarr/zarr.json"):
                ingest(MemorySource(20), url, workers=1)
            return super().records()

    report = ingest(Slow(40), url, workers=1)
    assert_balanced(report)
    assert (report.release, report.n_rows) == ("r2", 40)


def test_a_folder_may_be_named_alone(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no-such-folder"):
        ingest(str(tmp_path / "no-such-folder"), str(tmp_path / "cube"))


def test_patches_in_quarantine_do_not_count_as_unlabeled(tmp_path: Path) -> None:
    source = MemorySource(20, unlabeled=frozenset({1, 2}), malformed=frozenset({2}))
    assert ingest(source, str(tmp_path), workers=1).n_unlabeled == 1


def test_a_worker_that_is_killed_costs_its_shard_only(tmp_path: Path) -> None:
    undisturbed, broken = str(tmp_path / "a"), str(tmp_path / "b")
    ingest(MemorySource(1500), undisturbed, workers=2)
    killed: list[int] = []

    def kill_one(n_done: int, n_all: int) -> None:
        if not killed:
            killed.append(next(iter(processes.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as processes,
    ):
        report = ingest(MemorySource(1500), broken, client=processes, progress=kill_one)
    assert killed
    assert_balanced(report)
    assert objects_of(broken) == objects_of(undisturbed)


def test_a_scheduler_that_dies_ends_the_run_with_one_line_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    undisturbed, broken = str(tmp_path / "a"), str(tmp_path / "b")
    ingest(MemorySource(1500), undisturbed, workers=2)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    command += ["--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file"]
    scheduler = subprocess.Popen([*command, str(tmp_path / "s.json")], stderr=subprocess.DEVNULL)
    try:
        with (
            distributed.Client(scheduler_file=str(tmp_path / "s.json"), timeout=60) as client,
            distributed.LocalCluster(
                n_workers=0, dashboard_address="127.0.0.1:0", worker_dashboard_address="127.0.0.1:0"
            ),
        ):
            command = [sys.executable, "-m", "distributed.cli.dask_worker"]
            command += [client.scheduler.address, "--nthreads", "2", "--no-dashboard", "--no-nanny"]
            worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            client.wait_for_workers(1, timeout=60)

            def kill(n_done: int, n_all: int) -> None:
                scheduler.kill()

            with pytest.raises(StorageError, match="the Dask scheduler or its workers are gone"):
                ingest(MemorySource(1500), broken, client=client, progress=kill)
    finally:
        scheduler.kill()
        worker.kill()
        scheduler.wait()
        worker.wait()
    report = ingest(MemorySource(1500), broken, workers=2)
    assert report.resumed_shards >= 1
    assert objects_of(broken) == objects_of(undisturbed)


class FaultySource(MemorySource):
    """Its Sentinel-1 patch of number 7 cannot be read."""

    def read(self, record: PatchRecord) -> Patch:
        patch = super().read(record)
        if index_of(record.id) != 7:
            return patch
        fault = SetAside(str(record.s1_id), "7_VH.tif", "VH is truncated", "s1")
        return replace(patch, s1=None, problems=(fault,))


def test_a_view_in_quarantine_is_there_in_the_next_run_too(tmp_path: Path) -> None:
    first = ingest(FaultySource(30), str(tmp_path), workers=1)
    again = ingest(FaultySource(30), str(tmp_path), workers=1)
    assert again.release is None
    assert first.accounts == again.accounts
    assert first.accounts["s1"].quarantined == 1
    assert again.quarantined[0].reason == "VH is truncated, when its row was published"


def test_what_is_learned_of_published_rows_is_counted_and_in_the_cube(tmp_path: Path) -> None:
    before = ingest(MemorySource(30, unlabeled=frozenset(range(9))), str(tmp_path), workers=1)
    assert (before.n_unlabeled, before.n_unsplit, before.n_restated) == (9, 0, 0)
    assert ingest(MemorySource(30), str(tmp_path), workers=1).n_restated == 9
    cube = open_cube(str(tmp_path))
    for patch_id, hot in zip(cube.column("id")[cube.rows], cube.labels("label_19"), strict=True):
        assert [NAMES_19[i] for i in np.flatnonzero(hot)] == list(labels_of(index_of(patch_id)))


def test_columns_of_a_run_that_was_given_up_leave_nothing_in_older_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: CubeWriter, releases: Any) -> None:
        raise KilledError

    url = str(tmp_path)
    ingest(MemorySource(40, with_views=False), url, workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(CubeWriter, "publish", killed)
        with pytest.raises(KilledError):
            ingest(MemorySource(60), url, workers=1)
    shutil.rmtree(tmp_path / "ingest" / "r2")
    ingest(MemorySource(20, first=40), url, workers=1)
    group = zarr.open_group(f"{url}/cube.zarr", mode="r")["s1/r10m"]
    assert group["present"][:].nonzero()[0].tolist() == list(range(256, 276))
    assert (group["id"][:256] == "").all()
    assert (group["acquired"][:256] == 0).all()


@pytest.mark.parametrize(
    ("sources", "cube"),
    [
        (["a", "b"], "b"),
        (["a"], "a"),
        (["a"], "a/cube"),
        (["a"], "Reference_Maps"),
        (["a"], "metadata.parquet"),
    ],
)
def test_a_cube_is_never_written_into_an_archive(
    sources: list[str], cube: str, tmp_path: Path
) -> None:
    for name in ("a", "b", "Reference_Maps"):
        (tmp_path / name).mkdir()
    (tmp_path / "metadata.parquet").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInputError, match="after the sources"):
        ingest([str(tmp_path / name) for name in sources], str(tmp_path / cube))
    assert sorted(tmp_path.rglob("*")) == before


def test_worker_processes_write_the_same_bytes_as_this_process(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    ingest(MemorySource(300), str(tmp_path / "a"), client=dask_client)
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
        ) as cluster,
        distributed.Client(cluster) as processes,
    ):
        ingest(MemorySource(300), str(tmp_path / "b"), client=processes)
    assert objects_of(str(tmp_path / "a")) == objects_of(str(tmp_path / "b"))


def test_two_runs_at_once_are_refused_and_a_dead_one_is_taken_over(
    tmp_path: Path, dask_client: distributed.Client, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(tmp_path)
    now = utc_now().isoformat()
    other = {"host": "elsewhere", "pid": 7, "since": now, "heartbeat": now, "token": "other"}
    storage.write(LOCK, json.dumps(other).encode())
    with pytest.raises(InvalidInputError, match="process 7 on elsewhere since"):
        ingest(MemorySource(5), str(tmp_path), client=dask_client)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    other |= {"host": os.uname().nodename, "pid": dead.pid}
    storage.write(LOCK, json.dumps(other).encode())
    ingest(MemorySource(5), str(tmp_path), client=dask_client)
    assert "taking the cube over" in caplog.text
    assert not storage.exists(LOCK)


def test_unknown_labels_stay_unknown(tmp_path: Path, dask_client: distributed.Client) -> None:
    report = ingest(
        MemorySource(20, unlabeled=frozenset({1, 2})), str(tmp_path), client=dask_client
    )
    assert report.n_unlabeled == 2
    cube = open_cube(str(tmp_path))
    assert cube.items["bec:labels"].null_count == 2
    assert cube.column("has_labels").sum() == 18


def test_a_source_that_lacks_patches_of_its_lists_is_refused_on_request(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    source = MemorySource(5, lost=("a", "b"))
    with pytest.raises(InvalidInputError, match="2 patches that the lists hold are absent"):
        ingest(source, str(tmp_path), client=dask_client, require_complete=True)
    assert list(tmp_path.iterdir()) == []
    assert ingest(source, str(tmp_path), client=dask_client).n_absent == 2


def test_another_archive_is_not_mixed_into_a_cube(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    ingest(MemorySource(5), str(tmp_path), client=dask_client)
    with pytest.raises(InvalidInputError, match="holds archive v2, the source is v1"):
        ingest(MemorySource(5, archive="v1"), str(tmp_path), client=dask_client)
    with pytest.raises(InvalidInputError, match="is 'bigearthnet-v2', not 'mine'"):
        ingest(MemorySource(5), str(tmp_path), client=dask_client, cube_id="mine")


def test_nothing_is_written_when_nothing_can_be_read(
    tmp_path: Path, s3_options: dict[str, str], dask_client: distributed.Client
) -> None:
    with pytest.raises(InvalidInputError, match="no patch can be read"):
        ingest(MemorySource(0), str(tmp_path / "cube"), client=dask_client)
    assert not (tmp_path / "cube").exists()
    with pytest.raises(NotFoundError, match="bucket"):
        ingest(
            MemorySource(3),
            "s3://no-such-bucket/cube",
            storage_options=s3_options,
            client=dask_client,
        )


def test_a_cube_on_s3_is_the_same_cube(
    bucket: str,
    s3_options: dict[str, str],
    tmp_path: Path,
    dask_client: distributed.Client,
) -> None:
    url = f"{bucket}/cube"
    report = ingest(MemorySource(300), url, storage_options=s3_options, client=dask_client)
    assert_balanced(report)
    ingest(MemorySource(300), str(tmp_path), client=dask_client)
    remote, local = Storage(url, s3_options), Storage(tmp_path)
    keys = [key for key, _ in remote.list() if key.startswith("cube.zarr/s")]
    assert keys == [key for key, _ in local.list() if key.startswith("cube.zarr/s")]
    for key in keys:
        assert remote.read(key) == local.read(key)
    tree = open_cube(url, s3_options).tree
    assert tree["s2/r10m"].sizes["patch"] == 300


def write_list(path: Path, source: MemorySource, **changed: Any) -> str:
    """An official list of v2 of the patches of a source; ``changed`` columns by row number."""
    rows = [
        {
            "patch_id": record.id,
            "labels": None if record.labels is None else list(record.labels),
            "split": record.split,
            "country": record.country,
            "s1_name": record.s1_id,
            "contains_seasonal_snow": record.flagged_snow,
            "contains_cloud_or_shadow": record.flagged_cloud_or_shadow,
        }
        for record in source.records()
    ]
    for name, values in changed.items():
        for row, value in values.items():
            rows[row][name] = value
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_lists_alone_make_the_items_and_columns_that_the_archive_makes(
    tmp_path: Path, dask_client: distributed.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemorySource(300, unlabeled=frozenset({4}))
    ingest(source, str(tmp_path / "whole"), client=dask_client)
    whole = open_cube(str(tmp_path / "whole"))
    monkeypatch.setattr(distributed, "LocalCluster", None)  # there is nothing to run on one
    lists = write_list(tmp_path / "metadata.parquet", source)
    report = ingest([lists], str(tmp_path / "cube"), metadata_only=True)
    assert_balanced(report)
    assert (report.release, report.n_rows, report.n_unlabeled) == ("r1", 300, 1)
    cube = open_cube(str(tmp_path / "cube"))
    assert not cube.has_pixels
    assert whole.has_pixels
    assert cube.items.drop_columns("assets").equals(whole.items.drop_columns("assets"))
    for name in ("id", "split", "epsg", "ulx", "label_19", "has_labels", "flagged_snow"):
        np.testing.assert_array_equal(cube.column(name), whole.column(name))
    assert len(cube.search(split="test")) == len(whole.search(split="test")) > 0
    assert cube.counts() == whole.counts()
    assert cube.tree.groups == ("/",)
    assert cube.tree.sizes["patch"] == 300
    assert [fault for _, fault in cube.verify(cube.recorded_objects()) if fault] == []
    assert set(cube.items["assets"].to_pylist()[0].values()) == {None}
    assert json.loads(cube.storage.read("collection.json"))["item_assets"] == {}


def test_a_cube_of_lists_alone_refuses_pixels_and_says_why(
    tmp_path: Path, dask_client: distributed.Client
) -> None:
    url = str(tmp_path / "cube")
    lists = write_list(tmp_path / "metadata.parquet", MemorySource(20))
    ingest(lists, url, metadata_only=True)
    before = objects_of(url)
    cube = open_cube(url)
    for asked in (
        lambda: cube.pixel_layout("s2/r10m"),
        lambda: BatchLoader(cube, batch_size=4),
        lambda: ingest(MemorySource(30), url, client=dask_client),
        lambda: ingest(MemorySource(20), url, client=dask_client),
    ):
        with pytest.raises(InvalidInputError, match="has no pixels: it was made from lists alone"):
            asked()
    assert objects_of(url) == before
    ingest(MemorySource(20), str(tmp_path / "whole"), client=dask_client)
    with pytest.raises(InvalidInputError, match="has pixels, the source has none"):
        ingest(lists, str(tmp_path / "whole"), metadata_only=True)


def test_a_cube_of_lists_alone_refuses_views_alone_too(tmp_path: Path) -> None:
    folder, url = tmp_path / "archive", str(tmp_path / "cube")
    write_archive(str(folder), archive="v2", n_patches=4, seed=1)
    lists = [str(path) for path in folder.glob("metadata*.parquet")]
    ingest(lists, url, metadata_only=True)
    before = objects_of(url)
    for name in ("BigEarthNet-S1", "Reference_Maps"):
        with pytest.raises(InvalidInputError, match="has no pixels: it was made from lists alone"):
            ingest([str(folder / name), *lists], url, workers=1)
    assert objects_of(url) == before


def test_the_second_list_joins_as_a_release_and_a_repaired_row_with_it(tmp_path: Path) -> None:
    url = str(tmp_path / "cube")
    bad = write_list(tmp_path / "a/metadata.parquet", MemorySource(20), split={3: "val"})
    report = ingest(bad, url, metadata_only=True)
    assert_balanced(report)
    assert [(index_of(q.id), q.file) for q in report.quarantined] == [(3, bad)]
    good = write_list(tmp_path / "metadata.parquet", MemorySource(20))
    more = tmp_path / "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
    report = ingest([good, write_list(more, MemorySource(15, first=10))], url, metadata_only=True)
    assert_balanced(report)
    assert (report.release, report.n_rows) == ("r2", 25)
    assert ingest([good, str(more)], url, metadata_only=True).release is None
    assert open_cube(url, release="r1").n_patches == 19


BAD_ROWS = {
    "split": "val",
    "labels": ["Meadows"],
    "s1_name": "S1A_nonsense",
    "patch_id": "S2A_MSIL2A_20170613T101031_N9999_R022_T01CCV_26_57",
}


@given(faults=st.dictionaries(st.integers(0, 11), st.sampled_from(sorted(BAD_ROWS)), max_size=11))
def test_every_row_of_a_list_is_a_record_or_in_quarantine(
    tmp_path_factory: pytest.TempPathFactory, faults: dict[int, str]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    changed: dict[str, dict[int, Any]] = {}
    for row, name in faults.items():
        value = BAD_ROWS[name] if name != "patch_id" else f"{BAD_ROWS[name][:-2]}{row:02d}"
        changed.setdefault(name, {})[row] = value
    source = open_lists([write_list(folder / "metadata.parquet", MemorySource(12), **changed)])
    expected = [r.id for i, r in enumerate(MemorySource(12).records()) if i not in faults]
    assert [record.id for record in source.records()] == expected
    assert len(source.quarantined()) == len(faults)
    assert source.found() == {"s2": 12}
    again = pickle.loads(pickle.dumps(source))
    assert [r.id for r in again.records()] == expected


@pytest.mark.parametrize(
    ("name", "archive", "message"),
    [
        ("v1_train.csv.bz2", "auto", "a list of v1, which holds no labels; name metadata.parquet"),
        ("metadata.parquet", "v1", "the lists of v1 hold no labels"),
        ("other.parquet", "auto", "is no official list; name metadata.parquet"),
        ("folder", "auto", "is a folder, but metadata only was asked for"),
        (None, "auto", "no list given"),
    ],
)
def test_what_is_no_list_of_v2_is_refused_in_one_line(
    name: str | None, archive: Any, message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    sources = [] if name is None else [str(tmp_path / name)]
    with pytest.raises(InvalidInputError, match=message):
        ingest(sources, str(tmp_path / "cube"), archive=archive, metadata_only=True)
    assert not (tmp_path / "cube").exists()


def test_lists_that_are_missing_or_lack_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"metadata\.parquet does not exist"):
        open_lists([str(tmp_path / "metadata.parquet")])
    nameless = write_list(tmp_path / "metadata.parquet", MemorySource(3), patch_id={1: None})
    with pytest.raises(InvalidInputError, match="rows without a patch_id"):
        ingest(nameless, str(tmp_path / "cube"), metadata_only=True)
    with pytest.raises(InvalidInputError, match="of MemorySource; name official lists"):
        ingest(MemorySource(3), str(tmp_path / "cube"), metadata_only=True)
    source = open_lists([write_list(tmp_path / "metadata.parquet", MemorySource(3))])
    with pytest.raises(InvalidInputError, match="has no pixels: it comes from a list alone"):
        source.read(next(iter(source.records())))


SAMPLES = {
    "v1": ("v1/BigEarthNet-v1.0", "v1/BigEarthNet-S1-v1.0"),
    "v2": ("v2",),
    "flat": ("odd/flat-layout-tiff-suffix",),
}


@pytest.mark.samples
@pytest.mark.parametrize("name", SAMPLES)
def test_every_pixel_of_the_real_samples_equals_what_rasterio_reads(
    name: str, samples: Path, tmp_path: Path, dask_client: distributed.Client
) -> None:
    rasterio = pytest.importorskip("rasterio")
    folders = [str(samples / part) for part in SAMPLES[name]]
    report = ingest(folders, str(tmp_path), client=dask_client)
    assert_balanced(report)
    assert not report.quarantined
    cube = open_cube(str(tmp_path))
    compared = {"s2": 0, "s1": 0, "reference": 0}
    files = {
        path.stem: path
        for folder in folders
        for path in Path(folder).rglob("*.tif*")
        if path.suffix in (".tif", ".tiff")
    }
    s1_ids = cube.tree["s1/r10m"]["id"].values if "s1/r10m" in cube.documents else None
    for position, patch_id in enumerate(cube.items["id"].to_pylist()):
        for path in cube.layout.groups:
            kind, group = path.split("/")[0], cube.tree[path]
            present = "present" not in group or bool(group["present"][position])
            if not present:
                continue
            stem = s1_ids[position] if kind == "s1" else patch_id
            axis = {"s2": "band", "s1": "polarization"}.get(kind)
            names = group[axis].values.tolist() if axis else ["reference_map"]
            stored = next(iter(group.data_vars.values()))[position].values
            for index, band in enumerate(names):
                with rasterio.open(files[f"{stem}_{band}"]) as file:
                    expected = file.read(1)
                ours = stored[index] if axis else stored
                assert ours.dtype == expected.dtype
                np.testing.assert_array_equal(ours.view(np.uint8), expected.view(np.uint8))
                compared[kind] += 1
    expected_files = {kind: report.accounts[kind].ingested for kind in compared}
    per_patch = {"s2": 12, "s1": 2, "reference": 1}
    assert compared == {k: expected_files[k] * per_patch[k] for k in compared}


@pytest.mark.samples
def test_official_lists_label_the_samples_and_count_what_is_absent(
    samples: Path, tmp_path: Path, dask_client: distributed.Client
) -> None:
    sources = [
        str(samples / "v2"),
        str(samples / "metadata/metadata.parquet"),
        str(samples / "metadata/metadata_for_patches_with_snow_cloud_or_shadow.parquet"),
    ]
    report = ingest(sources, str(tmp_path), client=dask_client)
    assert_balanced(report)
    cube = open_cube(str(tmp_path))
    listed = pq.read_table(sources[1]).to_pylist()
    official = {row["patch_id"]: row for row in listed}
    assert report.n_absent == 549_488 - (cube.n_patches - report.n_unlabeled)
    for item in cube.items.select(["id", "bec:labels", "bec:split", "bec:country"]).to_pylist():
        if item["id"] in official:
            row = official[item["id"]]
            assert set(item["bec:labels"]) == set(row["labels"])
            assert (item["bec:split"], item["bec:country"]) == (row["split"], row["country"])


@pytest.mark.samples
def test_v2_without_parquet_has_no_labels_and_says_so(
    samples: Path, tmp_path: Path, dask_client: distributed.Client
) -> None:
    report = ingest([str(samples / "v2")], str(tmp_path), client=dask_client)
    assert report.n_unlabeled == 18
    assert report.accounts["s1"].orphans == 19
    assert any("parquet" in orphan.reason for orphan in report.orphans)


def test_a_plan_with_another_sentinel_1_patch_is_another_plan(tmp_path: Path) -> None:
    records = list(MemorySource(3).records())
    other = [replace(records[0], s1_id=records[1].s1_id), *records[1:]]
    digests = {
        make_plan(
            Storage(str(tmp_path)), "v2", None, some, cube_id=None, profile="default"
        ).digest()
        for some in (records, list(MemorySource(3).records()), other)
    }
    assert len(digests) == 2
