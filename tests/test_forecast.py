"""What is said beforehand is what then happens."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigearth_cube import layout
from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cli import main
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import forecast, ingest
from bigearth_cube.lock import LOCK
from bigearth_cube.prices import prices_of
from bigearth_cube.storage import Storage
from tests.sources import MemorySource


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic v2 archive of 300 pairs."""
    folder = tmp_path_factory.mktemp("archive") / "v2"
    write_archive(folder, archive="v2", n_patches=300, seed=8, workers=1)
    return folder


def written_to(url: str) -> tuple[int, int]:
    stored = Storage(url).list()
    return len(stored), sum(size for key, size in stored if not key.startswith("ingest/"))


def lasting(written: set[str]) -> set[str]:
    """Leave out what is there only until a release is published."""
    passing = ("/before/", "/pending.json", LOCK)
    return {key for key in written if not any(part in key for part in passing)}


def written_from_now_on(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys of all objects that are written after the call."""
    written: set[str] = set()
    for name in ("write", "write_new"):
        put = getattr(Storage, name)

        def noted(self: Storage, key: str, data: bytes, put: Any = put) -> Any:
            written.add(key)
            return put(self, key, data)

        monkeypatch.setattr(Storage, name, noted)
    return written


@pytest.mark.parametrize("profile", ["default", "fast"])
def test_a_new_cube_has_the_objects_and_about_the_bytes_of_its_forecast(
    archive: Path, tmp_path: Path, profile: str
) -> None:
    url = str(tmp_path / "cube")
    said = forecast(str(archive), url, profile=profile, workers=1)  # type: ignore[arg-type]
    assert not (tmp_path / "cube").exists()
    report = ingest(str(archive), url, profile=profile, workers=1)  # type: ignore[arg-type]
    assert (said.release, said.patches) == (report.release, report.n_rows)
    assert said.views == {kind: account.ingested for kind, account in report.accounts.items()}
    n_objects, n_bytes = written_to(url)
    assert said.objects == n_objects
    assert 0.85 * n_bytes < said.write_bytes < 1.15 * n_bytes
    files = sum(f.stat().st_size for f in archive.rglob("*.tif"))
    assert 0.95 * files < said.read_bytes < 1.05 * files
    assert said.seconds > 0
    assert said.dollars_a_month == pytest.approx(said.write_bytes * 0.023e-9)
    assert forecast(str(archive), url).release is None


def test_tars_and_late_views_are_foretold_too(archive: Path, tmp_path: Path) -> None:
    tars = {}
    for name in ("BigEarthNet-S2", "BigEarthNet-S1"):
        tars[name] = str(tmp_path / f"{name}.tar")
        with tarfile.open(tars[name], "w") as tar:
            tar.add(archive / name, name)
    lists = [str(path) for path in archive.glob("*.parquet")]
    url = str(tmp_path / "cube")
    said = forecast([tars["BigEarthNet-S2"], *lists], url)
    assert said.read_bytes == Path(tars["BigEarthNet-S2"]).stat().st_size  # once, by the lists
    ingest([tars["BigEarthNet-S2"], *lists], url)
    assert said.objects == written_to(url)[0]
    folder = forecast([str(archive / "BigEarthNet-S1")], url)
    late = forecast([tars["BigEarthNet-S1"]], url)
    assert folder.views == late.views
    assert folder.write_bytes == pytest.approx(late.write_bytes, rel=0.1)
    assert folder.seconds > 0
    assert (late.release, late.patches, late.views["s1"]) == ("r2", 0, 300)
    before = dict(Storage(url).list())
    ingest([tars["BigEarthNet-S1"]], url)
    new = [key for key, _ in Storage(url).list() if key not in before]
    assert len([key for key in new if "backscatter/c/" in key]) == 2
    assert late.objects >= len(new)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_release_of_fewer_groups_beside_models_has_the_objects_of_its_forecast(
    form: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "cube")
    ingest(MemorySource(20), url, workers=1)
    for write in ("write_embeddings", "write_predictions"):
        cube = open_cube(url)
        more = ("label_19",) if "predictions" in write else ()
        getattr(cube, write)("model", np.zeros((cube.n_rows, 19), np.float32), *more)
    source = archive / "BigEarthNet-S2"
    if form == "tar":
        with tarfile.open(tmp_path / "BigEarthNet-S2.tar", "w") as tar:
            tar.add(source, source.name)
        source = tmp_path / "BigEarthNet-S2.tar"
    sources = [str(source), *(str(path) for path in archive.glob("*.parquet"))]
    said = forecast(sources, url)
    written = written_from_now_on(monkeypatch)
    report = ingest(sources, url, workers=1)
    assert (said.release, said.patches) == (report.release, 300) == ("r2", 300)
    assert said.objects == len(lasting(written))


def test_columns_of_a_new_group_are_foretold_from_their_first_row_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(layout._column.__kwdefaults__, "chunk_rows", 256)
    ingest(MemorySource(20, with_views=False), str(tmp_path), workers=1)
    said = forecast(MemorySource(5, first=20), str(tmp_path))
    written = written_from_now_on(monkeypatch)
    ingest(MemorySource(5, first=20), str(tmp_path), workers=1)
    assert "cube.zarr/s1/r10m/present/c/0" in written
    assert said.objects == len(lasting(written))


def test_more_cores_do_not_read_a_tar_faster(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "BigEarthNet-S2.tar", "w") as tar:
        tar.add(archive / "BigEarthNet-S2", "BigEarthNet-S2")

    def gain(source: Path) -> float:
        url = str(tmp_path / "cube")
        one, many = (forecast([str(source)], url, workers=n).seconds for n in (1, 10_000))
        return one / many

    assert gain(archive / "BigEarthNet-S2") > 500
    assert gain(tmp_path / "BigEarthNet-S2.tar") < 500


def test_what_ingest_refuses_has_no_forecast(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="after the sources"):
        forecast(str(archive), str(archive / "cube"))


def test_the_command_prints_a_line_a_fact_and_writes_nothing(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["plan", str(archive), str(tmp_path / "cube")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        *("release", "patches", "read", "write", "time", "keeping", "writing")
    ]
    assert "300 new rows; 300 s2, 300 s1, 300 reference" in lines[1]
    assert "AWS S3 Standard, us-east-1" in lines[5]
    main(["plan", str(archive), str(tmp_path / "cube"), "--region", "eu-central-1", "--json"])
    dearer = json.loads(capsys.readouterr().out)
    assert dearer["prices"] == prices_of("eu-central-1").label
    assert dearer["dollars_a_month"] == pytest.approx(
        dearer["write_bytes"] / 1e9 * prices_of("eu-central-1").gb_month
    )
    with pytest.raises(SystemExit):
        main(["plan", str(archive), str(tmp_path / "cube"), "--region", "mars"])
    assert "no prices of region 'mars'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
