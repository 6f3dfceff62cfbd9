"""Two encoders of one space: both learn, both are embedded, and each finds the other's patches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import GROUPS, STATISTICS
from bigearth_cube.retrieval import distances, neighbors
from bigearth_cube.search import Selection
from bigearth_cube.storage import Storage
from training import train as training_loop
from training.checkpoint import BEST, Checkpoint, load, newest_whole, step_key
from training.config import Config
from training.embed import embed
from training.models.layers import PerView
from training.models.tb_cnn import S1_S2
from training.models.two_views import TwoViews, embedded
from training.recipes import recipe
from training.retrieve import retrieval_rows
from training.train import Run, fit


def small(**overrides: object) -> Config:
    values = {"batch_size": 12, "epochs": 2, "batch_norm_patches": 12, **overrides}
    return recipe("tb-cnn-contrastive-small", "label_19", **values)


def with_both_views(cube: Cube, split: str) -> Selection:
    chosen = cube.search(split=split)
    there = cube.column("s1/r10m/present")[chosen.rows]
    return cube.search(ids=chosen.ids.filter(there.tolist()).to_pylist())


def run(cube: Cube, out: str, config: Config, **arguments: Any) -> Run:
    train, validation = (with_both_views(cube, split) for split in ("train", "validation"))
    return fit(cube, config, train=train, validation=validation, out=out, **arguments)


def random_images(n: int) -> dict[str, Tensor]:
    images: dict[str, Tensor] = {}
    for path in S1_S2:
        shape = (n, *GROUPS[path].patch_shape)
        images[path] = torch.randn(shape) * 5 - 15
        if path != "s1/r10m":
            images[path] = torch.randint(0, 9000, shape).to(torch.uint16)
    return images


@pytest.fixture(scope="module")
def finished(paired: Cube, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(paired, str(tmp_path_factory.mktemp("runs") / "one"), small())


@pytest.fixture(scope="module")
def checkpoint(finished: Run) -> Checkpoint:
    return load(finished.url)


def test_each_view_is_scored_by_itself_and_both_by_the_mean_of_their_features() -> None:
    torch.manual_seed(0)
    network, images = TwoViews(19, STATISTICS["v2"]).eval(), random_images(3)
    with torch.inference_mode():
        outputs = network.outputs(images)
        assert isinstance(outputs, PerView)
        assert outputs.logits_BVC.shape == (3, 2, 19)
        assert outputs.features_BVF.shape == (3, 2, 128)
        assert outputs.features_BVF.min() >= 0
        torch.testing.assert_close(network(images), outputs.logits_BVC.mean(1))
        # What one view is given changes nothing of the other.
        other = {**images, "s1/r10m": images["s1/r10m"] + 1}
        again = network.outputs(other)
        assert torch.equal(again.features_BVF[:, 0], outputs.features_BVF[:, 0])
        assert not torch.equal(again.features_BVF[:, 1], outputs.features_BVF[:, 1])


def test_chi_square_of_vectors_is_one_to_two_times_what_the_cosine_of_features_says() -> None:
    torch.manual_seed(0)
    network, images = TwoViews(19, STATISTICS["v2"]).eval(), random_images(4)
    with torch.inference_mode():
        features = network.outputs(images).features_BVF
        vectors = [embedded((view,), images) for view in (network.s2, network.s1)]
    cosine_B = torch.cosine_similarity(features[:, 0], features[:, 1])
    for vectors_BF in vectors:
        assert vectors_BF.min() >= 0
        torch.testing.assert_close(vectors_BF.sum(1), torch.ones(4))
    for one, other, cosine in zip(*vectors, cosine_B, strict=True):
        apart = distances(other.numpy()[None], one.numpy())[0]
        least = 2 - 2 * float(cosine)
        assert least - 1e-5 <= apart <= 2 * least + 1e-5


def test_a_contrast_alone_moves_the_weights_of_both_encoders() -> None:
    torch.manual_seed(0)
    gradients: dict[str, float] = {}

    class Noting(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            for name, weights in zip(names, self.param_groups[0]["params"], strict=True):
                gradients[name] = 0.0 if weights.grad is None else float(weights.grad.norm())
            return super().step(closure)

    network = TwoViews(19, STATISTICS["v2"])
    names = [name for name, _ in network.named_parameters()]
    images, labels_BC = random_images(6), (torch.rand(6, 19) < 0.2).float()
    batch = training_loop.TensorBatch(images, labels_BC, np.arange(6), None, slice(0, 6), 6)
    no_labels = torch.zeros(2, 19)  # the loss of labels weighs nothing
    training_loop.train_step(
        training_loop.Pass(network),
        Noting(network.parameters(), 1e-3),
        batch,
        training_loop.MultiLabelLoss("bce", weights_SC=no_labels),
        small(precision="float32"),
    )
    # Batch norm takes off what a bias before it adds.
    moved = {name for name, size in gradients.items() if size > 1e-6}
    for view in ("s2", "s1"):
        kernels = {n for n in names if n.startswith(f"{view}.") and n.endswith("weight")}
        assert kernels <= moved
    assert not {name for name in moved if name.startswith("head")}


def test_a_contrast_is_refused_of_a_model_of_one_view(paired: Cube, tmp_path: Path) -> None:
    config = recipe("tb-cnn-small", "label_19", contrast=1.0)
    with pytest.raises(InvalidInputError, match=r"contrast 1\.0 between views, but model 'tb-cnn'"):
        run(paired, str(tmp_path), config)


def test_rows_without_sentinel_1_are_refused(paired: Cube, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match="have no Sentinel-1 view; give a selection without"
    ):
        fit(paired, small(), train=paired.search(), out=str(tmp_path))


def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    paired: Cube, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, done = training_loop.train_step, []

    def stopped(*arguments: Any) -> Tensor:
        if len(done) == 4:  # in the second epoch, whose first step is saved
            raise KeyboardInterrupt
        done.append(step(*arguments))
        return done[-1]

    with monkeypatch.context() as patched:
        patched.setattr(training_loop, "train_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(paired, str(tmp_path), small(), save_every_s=0)
    assert Storage(tmp_path).exists(step_key(4))
    assert not Storage(tmp_path).exists(step_key(6))
    again = run(paired, str(tmp_path), small(), resume=True)
    for ours, theirs in (
        (load(again.url), load(finished.url)),
        (newest_whole(Storage(again.url)), newest_whole(Storage(finished.url))),
    ):
        one, other = (x[1] if isinstance(x, tuple) else x for x in (ours, theirs))
        assert one is not None
        assert other is not None
        assert all(torch.equal(one.model[k], other.model[k]) for k in other.model)
    assert [x.train_loss for x in again.history] == [x.train_loss for x in finished.history]
    assert Storage(finished.url).exists(BEST)


@pytest.fixture(scope="module")
def cross_modal(
    paired_url: str, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Cube:
    """The cube of pairs with embeddings of each view, and of other weights under another name."""
    url = tmp_path_factory.mktemp("cross") / "cube"
    shutil.copytree(paired_url, url)
    made = embed(open_cube(str(url)), checkpoint, name="twin")
    assert [(m.name, m.n_patches, m.n_features) for m in made] == [
        ("twin-s2", 60, 128),
        ("twin-s1", 58, 128),
        ("twin-s1-s2", 58, 128),
    ]
    return open_cube(str(url))


def test_embeddings_of_each_view_name_one_space_and_their_encoders_make_them(
    cross_modal: Cube, checkpoint: Checkpoint
) -> None:
    there = cross_modal.column("s1/r10m/present")
    row = int(cross_modal.rows[there[cross_modal.rows]][0])
    of_tree = int(np.searchsorted(cross_modal.rows, row))
    groups = {"twin-s2": S1_S2[:3], "twin-s1": S1_S2[3:], "twin-s1-s2": S1_S2}
    for name, read in groups.items():
        about = cross_modal.documents[f"embeddings/{name}"]["attributes"]
        assert about["space"] == checkpoint.weights_digest
        assert tuple(about["groups"]) == read
        vectors = cross_modal.embeddings(name)
        has_one = ~np.isnan(vectors[cross_modal.rows, 0])
        expected = np.ones(60, bool) if name == "twin-s2" else there[cross_modal.rows]
        np.testing.assert_array_equal(has_one, expected)
        session = onnxruntime.InferenceSession(cross_modal.encoder(name))
        given = {}
        for path in read:
            values = "backscatter" if path == "s1/r10m" else "reflectance"
            pixels = cross_modal.tree[path][values].isel(patch=[of_tree]).values
            given[path.replace("/", "_")] = pixels
        (made,) = session.run(["embedding"], given)
        np.testing.assert_allclose(made[0], vectors[row], rtol=1e-4, atol=1e-5)


def test_a_sentinel_1_view_finds_sentinel_2_views_as_a_plain_scan_does(cross_modal: Cube) -> None:
    row = int(cross_modal.rows[cross_modal.column("s1/r10m/present")[cross_modal.rows]][5])
    ids = dict(
        zip(
            cross_modal.items["bec:row"].to_pylist(),
            cross_modal.items["id"].to_pylist(),
            strict=True,
        )
    )
    query = cross_modal.embeddings("twin-s1")[row]
    answers = cross_modal.embeddings("twin-s2")[cross_modal.rows]
    far = dict(zip(cross_modal.rows.tolist(), distances(answers, query), strict=True))
    del far[row]
    found = neighbors(cross_modal, ids[row], model="twin-s2", query_model="twin-s1", k=7)
    assert [n.row for n in found] == sorted(far, key=lambda r: far[r])[:7]
    assert [n.score for n in found] == pytest.approx(sorted(far.values())[:7])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cross_modal_look_alikes_are_nearly_as_good_as_those_of_one_sensor(tmp_path: Path) -> None:
    write_archive(tmp_path / "archive", archive="v2", n_patches=3000, seed=0)
    ingest([str(tmp_path / "archive")], str(tmp_path / "cube"))
    cube = open_cube(str(tmp_path / "cube"))
    train, validation, test = (cube.search(split=s) for s in ("train", "validation", "test"))
    config = recipe("tb-cnn-contrastive-small", "label_19")
    url = str(tmp_path / "run")
    fit(cube, config, train=train, validation=validation, out=url, cache="auto")
    embed(cube, load(url), name="twin")
    cube = open_cube(cube.url)
    rows = retrieval_rows(cube, queries=test, answers=train, model="twin-s2", query_model="twin-s1")
    found = {row.features: row.scores.map for row in rows}
    chance = found["random features"]
    for asks, answers in (("s1", "s2"), ("s2", "s1")):
        across = found[f"twin-{asks} to twin-{answers}"]
        assert across >= 0.8 * found[f"twin-{answers}"]
        assert across > found[f"band statistics, {asks.upper()} to {answers.upper()}"]
        assert across > chance
