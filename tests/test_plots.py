"""Pictures are files that can be opened, and stretch what they show together alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError, NotFoundError
from bigearth_cube.plots import (
    MISSED,
    RIGHT,
    WRONG,
    LabeledPatch,
    _colored,
    draw_look_alikes,
    look_alikes,
    montage,
    stretched,
    true_color,
)
from bigearth_cube.retrieval import Neighbor


def random_patches(n: int) -> list[LabeledPatch]:
    rng = np.random.default_rng(0)
    names = tuple(f"class {i} of a rather long name that has to be cut" for i in range(9))
    return [
        LabeledPatch(
            rng.integers(0, 3000, (120, 120, 3)).astype(np.uint16),
            names[: i + 1],
            names[1:3],
            f"#{i}",
        )
        for i in range(n)
    ]


def is_png(path: Path) -> bool:
    pixels = image.imread(path)
    return path.read_bytes().startswith(b"\x89PNG") and float(pixels.std()) > 0


@pytest.mark.parametrize("n", [1, 5, 8])
def test_a_montage_is_drawn_of_any_number_of_patches(n: int, tmp_path: Path) -> None:
    montage(random_patches(n), tmp_path / "montage.png", "title")
    assert is_png(tmp_path / "montage.png")


def test_look_alikes_stand_in_one_row(tmp_path: Path) -> None:
    patches = random_patches(4)
    look_alikes(patches[0], patches[1:], tmp_path / "alike.png")
    height, width, _ = image.imread(tmp_path / "alike.png").shape
    assert width > 2 * height


def test_labels_are_colored_by_being_right_wrong_or_missed() -> None:
    assert _colored(("a", "b"), ("b", "c")) == [("b", RIGHT), ("c", WRONG), ("a", MISSED)]


def test_one_cloudy_patch_does_not_darken_the_others() -> None:
    rng = np.random.default_rng(0)
    dn_NYXC = rng.integers(200, 1200, (8, 30, 30, 3)).astype(np.uint16)
    alone = stretched(dn_NYXC[:7])
    dn_NYXC[7] = 9000
    together = stretched(dn_NYXC)
    assert 0 <= together.min() <= together.max() <= 1
    assert abs(together[:7].mean() - alone.mean()) < 0.02


def test_a_constant_picture_can_be_stretched() -> None:
    assert np.isfinite(stretched(np.full((1, 4, 4, 3), 7, np.uint16))).all()


def test_true_color_is_red_green_blue_in_the_order_asked_for(cube: Cube) -> None:
    ids = [cube.items["id"][i].as_py() for i in (40, 3, 77)]
    dn_NYXC = true_color(cube, ids)
    assert dn_NYXC.shape == (3, 120, 120, 3)
    for patch_id, dn_YXC in zip(ids, dn_NYXC, strict=True):
        patch = cube.patch(patch_id)["s2/r10m"]
        for channel, band in enumerate(("B04", "B03", "B02")):
            expected = patch["reflectance"].sel(band=band).values
            np.testing.assert_array_equal(dn_YXC[..., channel], expected)
    with pytest.raises(NotFoundError, match="no patch 'nothing'"):
        true_color(cube, ["nothing"])


def test_look_alikes_of_a_cube_are_drawn_with_their_labels(cube: Cube, tmp_path: Path) -> None:
    ids = cube.items["id"].to_pylist()[:14]
    found = [Neighbor(patch_id, cube.row_of(patch_id), 0.1) for patch_id in ids[1:]]
    draw_look_alikes(cube, ids[0], found, tmp_path / "alike.png", "title")
    height, width, _ = image.imread(tmp_path / "alike.png").shape
    assert width > 4 * height  # the query and the first ten
    with pytest.raises(NotFoundError, match="no patch 'nope'"):
        draw_look_alikes(cube, "nope", found, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_picture_of_no_known_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot draw to .*picture\.foo"):
        montage(random_patches(1), tmp_path / "picture.foo")
