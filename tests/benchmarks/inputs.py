"""What the contenders of the comparison read: one synthetic archive, cubes of it, and raw arrays.

A folder that was written whole is used again, so that a run can be repeated quickly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.session
import numpy as np

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import open_cube
from bigearth_cube.ingest import ingest
from bigearth_cube.loader.batches import S2, BatchLoader
from bigearth_cube.storage import Storage
from tests.benchmarks.peers.contender import ALL_BANDS

PROFILES = ("fast", "default")
BUCKET = "cubes"


def write_inputs(folder: Path, n_patches: int) -> None:
    """Write the archive, a cube of each profile, raw arrays, and the list of files of each row."""
    done = folder / "complete"
    if done.exists() and done.read_text() == str(n_patches):
        return
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds something else than inputs of {n_patches} patches")
    archive = folder / "archive"
    write_archive(archive, archive="v2", n_patches=n_patches, seed=0)
    for unread in ("BigEarthNet-S1", "Reference_Maps"):
        shutil.rmtree(archive / unread)
    source = [str(archive / "BigEarthNet-S2"), str(archive / "metadata.parquet")]
    for profile in PROFILES:
        ingest(source, str(folder / BUCKET / profile), profile=profile)
    cube = open_cube(str(folder / BUCKET / "fast"))
    if not np.array_equal(cube.rows, np.arange(n_patches)):
        raise SystemExit(f"the cube has {len(cube.rows)} rows, expected 0..{n_patches - 1}")
    (folder / "raw").mkdir()
    with BatchLoader(cube, batch_size=256, labels=None, shuffle="none") as loader:
        arrays: dict[str, Any] = {}
        for batch in loader.epoch(0):
            for group, pixels in batch.images.items():
                if group not in arrays:
                    path = folder / "raw" / f"{group.removeprefix('s2/')}.npy"
                    shape = (n_patches, *pixels.shape[1:])
                    arrays[group] = np.lib.format.open_memmap(path, "w+", np.uint16, shape)
                arrays[group][batch.rows] = pixels
    assert tuple(arrays) == S2
    files = {path.name: path for path in (archive / "BigEarthNet-S2").rglob("*.tif")}
    listed = [
        [str(files[f"{patch_id}_{band}.tif"]) for band in ALL_BANDS]
        for patch_id in cube.items["id"].to_pylist()
    ]
    (folder / "files.json").write_text(json.dumps(listed))
    done.write_text(str(n_patches))


def make_bucket(name: str, options: Mapping[str, str]) -> None:
    """Create a bucket on a signed server."""
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
    )
    client.create_bucket(Bucket=name)
    client.close()


def upload(folder: Path, bucket: str, options: Mapping[str, str]) -> None:
    """Put all files below a folder into a new bucket."""
    make_bucket(bucket, options)
    target = Storage(f"s3://{bucket}", options)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            target.write(path.relative_to(folder).as_posix(), path.read_bytes())
