"""What happens to a batch between the loader and the network."""

import logging

import numpy as np
import pytest
import torch

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.loader.batches import S2
from bigearth_cube.nomenclature import GROUPS
from bigearth_cube.search import Selection
from training.data import (
    Pass,
    autocast,
    compiles,
    computes_in_bfloat16,
    evaluation_loader,
    tensor_batches,
    training_loader,
    transformed,
)
from training.models import build
from training.recipes import recipe

CPU = torch.device("cpu")


def first(cube: Cube, n: int) -> Selection:
    return cube.search(ids=cube.items["id"].to_pylist()[:n])


def test_a_batch_larger_than_the_selection_is_cut_to_it_and_said_so(
    learnable: Cube, caplog: pytest.LogCaptureFixture
) -> None:
    config = recipe("tb-cnn", "label_19")
    with (
        caplog.at_level(logging.WARNING),
        training_loader(learnable, first(learnable, 10), config, ("s2/r60m",), "threads") as loader,
    ):
        sizes = [len(batch.rows) for batch in tensor_batches(loader, 0, CPU)]
    assert sizes == [10]
    assert "batch size 1000 is larger than the selection; cut to its 10 rows" in caplog.text


@pytest.mark.parametrize(("n", "sizes"), [(17, [8, 9]), (18, [8, 8, 2]), (9, [9])])
def test_a_last_batch_of_one_row_joins_the_batch_before(
    learnable: Cube, n: int, sizes: list[int]
) -> None:
    config = recipe("tb-cnn-small", "label_19", batch_size=8)
    with training_loader(learnable, first(learnable, n), config, ("s2/r60m",), "threads") as loader:
        assert [len(batch.rows) for batch in tensor_batches(loader, 0, CPU)] == sizes
        assert loader.n_batches == len(sizes)


def test_a_patch_is_turned_alike_in_every_group(learnable: Cube) -> None:
    config = recipe("tb-cnn-small", "label_19", batch_size=16)
    train = learnable.search(split="train")
    with training_loader(learnable, train, config, S2, "threads") as loader:
        plain = {
            int(row): {g: x[i].clone() for g, x in batch.images.items()}
            for batch in tensor_batches(loader, 0, CPU)
            for i, row in enumerate(batch.rows)
        }
        torch.manual_seed(0)
        used = set()
        for batch in tensor_batches(loader, 0, CPU, augment=True):
            assert batch.symmetry_B is not None
            turned = {g: transformed(x, batch.symmetry_B) for g, x in batch.images.items()}
            for i, row in enumerate(batch.rows):
                fitting = [
                    symmetry
                    for symmetry in range(8)
                    if all(
                        torch.equal(
                            transformed(plain[int(row)][g][None], torch.tensor([symmetry]))[0],
                            turned[g][i],
                        )
                        for g, x in batch.images.items()
                    )
                ]
                assert len(fitting) == 1
                used.add(fitting[0])
    assert used == set(range(8))


def test_a_selection_that_batch_norm_cannot_train_on_is_refused(learnable: Cube) -> None:
    small = recipe("tb-cnn-small", "label_19")
    with pytest.raises(InvalidInputError, match="selection of one row"):
        training_loader(learnable, first(learnable, 1), small, S2, "threads")
    with pytest.raises(InvalidInputError, match="empty"):
        training_loader(learnable, first(learnable, 0), small, S2, "threads")
    with pytest.raises(InvalidInputError, match="batch size 1;"):
        training_loader(
            learnable,
            first(learnable, 4),
            recipe("tb-cnn-small", "label_19", batch_size=1),
            S2,
            "threads",
        )


def test_tensors_hold_the_rows_and_labels_of_the_cube(learnable: Cube) -> None:
    with evaluation_loader(learnable, None, ("s2/r60m", "s2/r10m"), "label_19") as loader:
        batches = [
            (batch.rows.copy(), {p: x.clone() for p, x in batch.images.items()}, batch.labels_BC)
            for batch in tensor_batches(loader, 0, CPU)
        ]
    rows = np.concatenate([batch[0] for batch in batches])
    assert rows.tolist() == learnable.rows.tolist()
    labels_NC = torch.cat([batch[2] for batch in batches])
    assert labels_NC.dtype == torch.float32
    np.testing.assert_array_equal(labels_NC, learnable.labels("label_19", rows))
    pixels = torch.cat([batch[1]["s2/r10m"] for batch in batches])
    assert pixels.dtype == torch.uint16
    expected = learnable.tree["s2/r10m/reflectance"].isel(patch=5).values
    np.testing.assert_array_equal(pixels[5].numpy(), expected)


@pytest.mark.parametrize("symmetry", range(8))
def test_each_symmetry_turns_every_resolution_alike(symmetry: int) -> None:
    fine = torch.arange(65_000, 65_000 + 32).to(torch.uint16).view(1, 2, 4, 4)
    coarse = fine[..., ::2, ::2].contiguous()
    index = torch.tensor([symmetry])
    turned = transformed(fine, index)
    expected = np.rot90(
        fine.numpy()[..., ::-1] if symmetry >= 4 else fine.numpy(), symmetry % 4, (2, 3)
    )
    np.testing.assert_array_equal(turned.numpy(), expected)
    # a pixel of the coarse grid lies in the corner of its 2x2 block that the symmetry sends it to
    kept = set(transformed(coarse, index).flatten().tolist())
    assert kept == set(coarse.flatten().tolist())
    by_block = turned.to(torch.int32).view(1, 2, 2, 2, 2, 2)
    blocks_hold = [
        transformed(coarse, index)[0, c, y, x].item() in by_block[0, c, y, :, x].flatten().tolist()
        for c in range(2)
        for y in range(2)
        for x in range(2)
    ]
    assert all(blocks_hold)


def test_the_eight_symmetries_are_all_different_and_rows_do_not_mix() -> None:
    patch = torch.arange(9).to(torch.uint16).view(1, 1, 3, 3).expand(8, 1, 3, 3).contiguous()
    turned = transformed(patch, torch.arange(8))
    assert len({tuple(row.flatten().tolist()) for row in turned}) == 8
    assert torch.equal(transformed(patch, torch.zeros(8, dtype=torch.long)), patch)


def test_float32_stays_float32_and_bfloat16_is_only_chosen_where_it_is_computed() -> None:
    x = torch.ones(2, 2)
    for precision, expected in (
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("auto", torch.bfloat16 if computes_in_bfloat16(CPU) else torch.float32),
    ):
        with autocast(precision, CPU):  # type: ignore[arg-type]
            assert (x @ x).dtype == expected


def test_sentinel_1_is_turned_like_sentinel_2() -> None:
    dn_BCYX = torch.randint(0, 9000, (8, 2, 6, 6)).to(torch.uint16)
    symmetry_B = torch.arange(8)
    turned = transformed(dn_BCYX, symmetry_B).to(torch.float32)
    assert torch.equal(transformed(dn_BCYX.to(torch.float32), symmetry_B), turned)


def test_rows_without_a_sentinel_1_view_are_refused_where_one_is_read(paired: Cube) -> None:
    everything = paired.search()
    with pytest.raises(InvalidInputError, match="2 of 60 rows have no Sentinel-1 view"):
        evaluation_loader(paired, everything, ("s1/r10m",), "label_19")
    with evaluation_loader(paired, everything, ("s2/r60m",), "label_19") as loader:
        assert loader.n_batches == 1
    # What the refusal says to do.
    there = paired.column("s1/r10m/present")[paired.rows]
    chosen = paired.search(ids=paired.items["id"].filter(there).to_pylist())
    with evaluation_loader(paired, chosen, ("s1/r10m",), "label_19") as loader:
        assert sum(len(batch.rows) for batch in loader.epoch(0)) == 58


def test_steps_are_compiled_on_a_gpu_where_there_is_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(
        "shutil.which", lambda name: f"/usr/bin/{name}" if name == "clang" else None
    )
    assert compiles(torch.device("cuda"))
    assert not compiles(torch.device("cpu"))
    assert not caplog.messages
    monkeypatch.setenv("CC", "icx")
    assert not compiles(torch.device("cuda"))
    assert caplog.messages == [
        "no C compiler (icx), so steps are not compiled and are slower; install gcc"
    ]


@pytest.mark.slow
def test_what_a_gpu_compiles_is_one_graph_and_scores_as_written() -> None:
    """Turning, normalizing, dropout and all: a break in the graph would be a trip to memory."""
    torch.manual_seed(0)
    score = Pass(build("tb-cnn", 19, "v2"))
    images = {
        path: torch.randint(0, 9000, (4, *GROUPS[path].patch_shape)).to(torch.uint16) for path in S2
    }
    symmetry_B = torch.tensor([0, 3, 5, 6])
    compiled = torch.compile(score._score, backend="aot_eager", fullgraph=True, dynamic=False)
    score.train()
    loss = compiled(images, symmetry_B).square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in score.parameters())
    score.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images, symmetry_B), score(images, symmetry_B))
