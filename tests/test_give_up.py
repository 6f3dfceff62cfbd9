"""A run that ends while it publishes: readers, verify and who gives it up see the last release."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import pytest

from bigearth_cube import pending
from bigearth_cube.cli import main
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.ingest import give_up, ingest
from bigearth_cube.ingest import run as run_module
from bigearth_cube.storage import Storage
from tests.sources import MemorySource
from tests.test_faults import objects_of

FIRST = MemorySource(40, with_views=False)
MORE = MemorySource(60, without_s1=frozenset({4, 50}))  # new rows, and views of the older ones


class KilledError(Exception):
    """Ends a run in the middle."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client) -> Path:
    path = tmp_path_factory.mktemp("published") / "cube"
    ingest(FIRST, str(path), client=dask_client)
    return path


@pytest.fixture(scope="module")
def undisturbed(
    published: Path, tmp_path_factory: pytest.TempPathFactory, dask_client: distributed.Client
) -> dict[str, bytes]:
    """What the cube holds after both runs."""
    path = tmp_path_factory.mktemp("undisturbed") / "cube"
    shutil.copytree(published, path)
    ingest(MORE, str(path), client=dask_client)
    return objects_of(str(path))


Killed = Callable[[Path, int], int]


@pytest.fixture
def killed(dask_client: distributed.Client) -> Iterator[Killed]:
    """Runs the second ingest until so many objects are put of its end; returns how many were."""
    patch = pytest.MonkeyPatch()
    finish, put, put_new = run_module.finish, Storage.write, Storage.write_new

    def run(path: Path, n_puts: int) -> int:
        done = 0

        def count() -> None:
            nonlocal done
            if done == n_puts:
                raise KilledError
            done += 1

        def write(self: Storage, key: str, data: bytes) -> None:
            if key != "ingest/lock.json":
                count()
            put(self, key, data)

        def write_new(self: Storage, key: str, data: bytes) -> bool:
            count()
            return put_new(self, key, data)

        def dying(*arguments: object) -> Cube:
            with patch.context() as armed:
                armed.setattr(Storage, "write", write)
                armed.setattr(Storage, "write_new", write_new)
                return finish(*arguments)  # type: ignore[arg-type]

        with patch.context() as patched:
            patched.setattr(run_module, "finish", dying)
            try:
                ingest(MORE, str(path), client=dask_client)
            except KilledError:
                open_cube(str(path))
        return done

    yield run
    patch.undo()


def faults(path: Path) -> list[str]:
    cube = open_cube(str(path))
    return [str(fault) for _, fault in cube.verify(cube.recorded_objects()) if fault]


@pytest.fixture(scope="module")
def n_puts() -> list[int]:
    """How many puts a run ends with, once one knows."""
    return []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99])
def test_a_run_killed_while_it_publishes_is_gone_on_with_or_given_up(
    share: float,
    published: Path,
    undisturbed: dict[str, bytes],
    killed: Killed,
    n_puts: list[int],
    tmp_path: Path,
    dask_client: distributed.Client,
) -> None:
    if not n_puts:
        shutil.copytree(published, tmp_path / "whole")
        n_puts.append(killed(tmp_path / "whole", 10**9))
    here = tmp_path / "cube"
    shutil.copytree(published, here)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert killed(here, int(share * n_puts[0])) == int(share * n_puts[0])
    assert open_cube(str(here)).release.name == "r1"
    assert open_cube(str(here)).tree["s2/r10m"].sizes["patch"] == 40
    assert faults(here) == []
    shutil.copytree(here, tmp_path / "given-up")
    ingest(MORE, str(here), client=dask_client)
    assert objects_of(str(here)) == undisturbed
    assert faults(here) == []

    there = tmp_path / "given-up"
    done = give_up(str(there))
    assert done.release == "r2"
    assert (done.n_restored > 0) == (share > 0)
    assert {
        here / path.relative_to(there): path.read_bytes()
        for path in there.rglob("*")
        if path.is_file()
    } == before


def test_a_run_killed_right_after_it_published_leaves_nothing_behind(
    published: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dask_client: distributed.Client,
) -> None:
    here = tmp_path / "cube"
    shutil.copytree(published, here)
    with monkeypatch.context() as patched:
        patched.setattr(pending, "forget", lambda *_: None)
        ingest(MORE, str(here), client=dask_client)
    assert faults(here) == []
    assert objects_of(str(here)) != undisturbed
    assert ingest(MORE, str(here), client=dask_client).release is None
    assert objects_of(str(here)) == undisturbed


def test_damage_is_found_although_a_run_is_not_finished(
    published: Path, killed: Killed, tmp_path: Path
) -> None:
    here = tmp_path / "cube"
    shutil.copytree(published, here)
    killed(here, 60)
    damaged = {
        "cube.zarr/id/c/0",
        "cube.zarr/id/zarr.json",
        "cube.zarr/s2/r10m/reflectance/c/0/0/0/0",
    }
    for key in damaged:
        data = bytearray((here / key).read_bytes())
        data[len(data) // 2] ^= 1
        (here / key).write_bytes(data)
    assert {fault.split(":")[0].split(",")[0] for fault in faults(here)} == damaged


def test_a_first_run_that_is_given_up_leaves_an_empty_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dying(*_: object) -> Cube:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "finish", dying)
        with pytest.raises(KilledError):
            ingest(FIRST, str(tmp_path), workers=1)
    with pytest.raises(NotFoundError, match="has not ended; run the same command again"):
        open_cube(str(tmp_path))
    main(["give-up", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["release"] == "r1"
    assert Storage(str(tmp_path)).list() == []
    with pytest.raises(InvalidInputError, match=r"no unfinished ingest in .*: nothing to give up"):
        give_up(str(tmp_path))


def test_a_root_that_was_changed_before_it_was_opened_is_found(
    published: Path, tmp_path: Path
) -> None:
    here = tmp_path / "cube"
    shutil.copytree(published, here)
    root = here / "cube.zarr/zarr.json"
    root.write_bytes(root.read_bytes().replace(b"IGARSS", b"IGARSX").replace(b"reBEN", b"reBAN"))
    assert faults(here) == ["cube.zarr/zarr.json: checksum within it is not that of the rest"]


def test_a_root_that_is_gone_is_not_called_changed(published: Path, tmp_path: Path) -> None:
    here = tmp_path / "cube"
    shutil.copytree(published, here)
    root = here / "cube.zarr/zarr.json"
    root.write_bytes(root.read_bytes().replace(b"IGARSS", b"IGARSX").replace(b"reBEN", b"reBAN"))
    cube = open_cube(str(here))
    root.unlink()
    (fault,) = (fault for _, fault in cube.verify(cube.recorded_objects()) if fault)
    assert str(fault) == "cube.zarr/zarr.json: object is missing"
