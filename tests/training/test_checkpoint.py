"""Checkpoints: the same values back, or a refusal that names the file."""

import io
import json
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bigearth_cube.errors import CubeIntegrityError, InvalidInputError, NotFoundError
from bigearth_cube.nomenclature import NAMES_19
from bigearth_cube.storage import Storage
from training import checkpoint as checkpoint_module
from training.checkpoint import BEST, Checkpoint, load, newest_whole, save, step_key
from training.config import Config
from training.models import build
from training.recipes import recipe


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(
        config=recipe("tb-cnn-small", "label_19"),
        archive="v2",
        class_names=NAMES_19,
        cube_id="bigearthnet-v2",
        release="2024",
        selection="0" * 64,
        model=build("tb-cnn", 19, "v2").state_dict(),
        optimizer=None,
        epoch=3,
        threshold=0.37,
        best_epoch=2,
        best_f1=0.6,
    )


@pytest.fixture(scope="module")
def small(checkpoint: Checkpoint) -> Checkpoint:
    """Weights of a few kilobytes, for tests that read many copies."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    return replace(checkpoint, model={"weight": torch.randn(300)}, optimizer=optimizer)


def test_a_checkpoint_without_what_came_later_reads_with_its_default(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads(small.config.to_json())
    for name in ("contrast", "temperature"):
        del config[name]
    with monkeypatch.context() as patched:
        then = [field for field in fields(Checkpoint) if field.name != "commit"]
        patched.setattr(checkpoint_module, "fields", lambda _: then)
        patched.setattr(Config, "to_json", lambda _: json.dumps(config))
        data = replace(small, commit="1" * 40).to_bytes()
    back = Checkpoint.from_bytes(data, "old.pt")
    assert back.commit is None
    assert back.config == small.config


@pytest.mark.parametrize("scheme", ["memory://runs/a", "folder"])
def test_a_checkpoint_comes_back_as_it_was_from_any_url(
    checkpoint: Checkpoint, scheme: str, tmp_path: Path
) -> None:
    url = scheme if "://" in scheme else str(tmp_path / scheme)
    save(checkpoint, Storage(url), BEST)
    back = load(url)
    assert replace(back, model={}) == replace(checkpoint, model={})
    assert back.model.keys() == checkpoint.model.keys()
    assert all(torch.equal(back.model[k], checkpoint.model[k]) for k in back.model)
    network = back.network()
    assert not network.training
    assert torch.equal(network.state_dict()["head.2.weight"], checkpoint.model["head.2.weight"])


def test_a_network_is_laid_out_as_its_config_says(checkpoint: Checkpoint) -> None:
    """A network that is not runs at half its speed on a CPU."""
    for channels_last in (True, False):
        config = replace(checkpoint.config, channels_last=channels_last)
        weight = (
            replace(checkpoint, config=config).network().state_dict()["branches.0.1.1.0.weight"]
        )
        assert weight.shape == (32, 32, 5, 5)
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_plain_torch_reads_a_checkpoint_without_running_code(small: Checkpoint) -> None:
    values = torch.load(io.BytesIO(small.to_bytes()), weights_only=True)
    assert values["epoch"] == 3
    assert torch.equal(values["model"]["weight"], small.model["weight"])


def test_every_flipped_bit_and_every_cut_is_refused_with_the_name(small: Checkpoint) -> None:
    data = small.to_bytes()
    rng = np.random.default_rng(0)
    for position in [*rng.integers(0, len(data), 150), 0, len(data) - 1]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(0, 8)
        with pytest.raises((CubeIntegrityError, InvalidInputError), match=r"runs/best\.pt"):
            Checkpoint.from_bytes(bytes(damaged), "runs/best.pt")
    for length in (0, 1, 50, len(data) // 2, len(data) - 1):
        with pytest.raises((CubeIntegrityError, InvalidInputError), match=r"runs/best\.pt"):
            Checkpoint.from_bytes(data[:length], "runs/best.pt")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(InvalidInputError, match="is no checkpoint"):
        load(str(tmp_path))
    torch.save(print, tmp_path / "best.pt")
    with pytest.raises(CubeIntegrityError, match="digest differs"):
        load(str(tmp_path))


def test_a_folder_gives_its_best_and_without_one_its_newest(
    small: Checkpoint, tmp_path: Path
) -> None:
    storage = Storage(tmp_path)
    save(replace(small, epoch=8), storage, step_key(900))
    save(replace(small, epoch=9), storage, step_key(1000))
    assert load(str(tmp_path)).epoch == 9
    save(small, storage, BEST)
    assert load(str(tmp_path)).epoch == 3
    assert load(f"{tmp_path}/step-00001000.pt").epoch == 9


def test_a_checkpoint_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    for url in (str(tmp_path), str(tmp_path / "none"), "memory://nothing/best.pt"):
        with pytest.raises(NotFoundError, match="no checkpoint at"):
            load(url)


@pytest.mark.parametrize("damaged", [b"", b"QK\x03\x04", b"PK\x03\x04"])
def test_a_newest_checkpoint_with_any_damage_gives_way_to_the_one_before(
    small: Checkpoint, damaged: bytes, tmp_path: Path
) -> None:
    run = Storage(tmp_path)
    save(small, run, step_key(3))
    run.write(step_key(4), damaged)
    found = newest_whole(run)
    assert found is not None
    assert found[0] == step_key(3)
