"""Training reads from S3 and from nowhere else: the archive is gone and no file is opened."""

import sys
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.storage import Storage
from training.recipes import recipe
from training.train import fit

_FORBIDDEN = (".tif", "cube.zarr", "/items/")


@pytest.fixture
def opened_storage(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URLs of every storage made here: local objects are read where no audit event is raised."""
    urls: list[str] = []
    make = Storage.__init__

    def noted(self: Storage, url: str, *arguments: Any, **options: Any) -> None:
        make(self, url, *arguments, **options)
        urls.append(self.url)

    monkeypatch.setattr(Storage, "__init__", noted)
    return urls


class Opens:
    """Names of files that this process opens while it is armed; an audit hook stays for good."""

    def __init__(self) -> None:
        self.armed = False
        self.names: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.armed and event == "open":
            self.names.append(str(arguments[0]))

    @property
    def forbidden(self) -> list[str]:
        return [name for name in self.names if any(part in name for part in _FORBIDDEN)]


@pytest.mark.parametrize("engine", ["threads", "dask"])
def test_training_opens_no_tif_and_no_cube_object_on_disk(
    engine: str,
    tmp_path: Path,
    bucket: str,
    s3_options: dict[str, str],
    dask_client: Client,
    opened_storage: list[str],
) -> None:
    opens = Opens()
    opens.armed = True
    Storage(tmp_path)
    assert opened_storage == [str(tmp_path)], "a local cube must be seen"
    archive = tmp_path / "archive"
    write_archive(archive, archive="v2", n_patches=16, seed=3, workers=1)
    assert opens.forbidden, "the hook must see the files that are written"
    ingest([str(archive)], f"{bucket}/cube", storage_options=s3_options, client=dask_client)
    for path in sorted(archive.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()

    opens.names.clear()
    opened_storage.clear()
    cube = open_cube(f"{bucket}/cube", storage_options=s3_options)
    try:
        run = fit(
            cube,
            recipe("tb-cnn-small", "label_19", epochs=1, batch_size=8),
            train=cube.search(split="train"),
            validation=cube.search(split="validation"),
            out=f"{bucket}/run",
            storage_options=s3_options,
            engine=dask_client if engine == "dask" else "threads",
        )
    finally:
        opens.armed = False
    assert opens.forbidden == []
    assert opened_storage
    assert [url for url in opened_storage if not url.startswith("s3://")] == []
    assert run.history[0].validation_f1 is not None
    kept = {key for key, _ in Storage(f"{bucket}/run", s3_options).list()}
    assert kept == {"best.pt", "step-00000001.pt", "metrics.jsonl"}
