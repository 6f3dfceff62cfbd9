"""A published checkpoint is an item that says what it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pystac
import pytest
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import NAMES_19
from bigearth_cube.storage import Storage
from training.checkpoint import BEST, Checkpoint, save
from training.models import build
from training.publish import publish
from training.recipes import recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cube: Cube) -> Path:
    """Folder of a run on the cube, with a best checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    checkpoint = Checkpoint(
        config=recipe("tb-cnn-small", "label_19"),
        archive="v2",
        class_names=NAMES_19,
        cube_id=cube.id,
        release=cube.release.name,
        selection=cube.search(split="train").digest,
        model=build("tb-cnn", 19, "v2").state_dict(),
        optimizer=None,
        epoch=3,
        threshold=0.25,
        best_epoch=2,
        best_f1=0.5,
    )
    save(checkpoint, Storage(str(folder)), BEST)
    save(replace(checkpoint, cube_id="another"), Storage(str(folder)), "other.pt")
    return folder


def test_the_item_of_a_checkpoint_lies_beside_it_and_says_what_it_is(run: Path, cube: Cube) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    url = publish(cube, str(run), now=when)
    assert url == f"{run}/tb-cnn-small-{cube.id}-r1.json"
    item = pystac.Item.from_file(url)
    known = item.properties
    assert known["bec:selection"] == cube.search(split="train").digest
    assert known["bec:metrics"] == {"threshold": 0.25, "validation_f1": 0.5}
    assert known["mlm:total_parameters"] == 16_523_251
    assert [i["name"] for i in known["mlm:input"]] == ["s2/r10m", "s2/r20m", "s2/r60m"]
    assert known["mlm:hyperparameters"]["epochs_done"] == 3
    assert known["created"] == "2026-01-02T03:04:05Z"
    asset = item.assets["checkpoint"].to_dict()
    stored = (run / BEST).read_bytes()
    assert asset["href"] == f"{run}/{BEST}"
    assert asset["file:size"] == len(stored)
    assert asset["file:checksum"] == "1220" + hashlib.sha256(stored).hexdigest()


def test_a_checkpoint_of_another_cube_is_refused(run: Path, cube: Cube) -> None:
    with pytest.raises(InvalidInputError, match="trained on cube 'another', this is"):
        publish(cube, f"{run}/other.pt")
    with pytest.raises(InvalidInputError, match="model name 'a/b'"):
        publish(cube, str(run), name="a/b")
    with pytest.raises(NotFoundError, match="no checkpoint"):
        publish(cube, "memory://no-run")
