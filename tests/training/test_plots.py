"""A learning curve is a file that can be opened."""

from pathlib import Path

import pytest
from matplotlib import image

from bigearth_cube.storage import Storage
from training.history import EpochLine, write_history
from training.plots import CURVE, comparison_png, draw_run, learning_curve
from training.results import TALK_2019, ResultRow


def line(epoch: int, f1: float | None) -> EpochLine:
    loss = None if f1 is None else 0.6 / epoch
    return EpochLine(epoch, 0.5 / epoch, loss, f1, 0.5, 1e-3, 100.0, 0.01, 1.0)


def is_png(path: Path) -> bool:
    pixels = image.imread(path)
    return path.read_bytes().startswith(b"\x89PNG") and float(pixels.std()) > 0


@pytest.mark.parametrize("f1", [[None], [0.3], [None, None], [0.2, 0.5, 0.4]])
def test_a_learning_curve_is_drawn_of_any_history(f1: list[float | None], tmp_path: Path) -> None:
    learning_curve([line(i + 1, v) for i, v in enumerate(f1)], tmp_path / "curve.png", "title")
    assert is_png(tmp_path / "curve.png")


def test_a_comparison_is_drawn_with_rows_that_have_no_figures(tmp_path: Path) -> None:
    none = ResultRow("a", "measured", "x", None, None, None, None, note="weights missing: a.pth")
    png = comparison_png([none, *TALK_2019], ("F1", "AP macro"), "title")
    (tmp_path / "table.png").write_bytes(png)
    assert is_png(tmp_path / "table.png")


def test_a_run_is_drawn_into_its_folder_at_any_url_and_one_of_no_epoch_is_not() -> None:
    folder = Storage("memory://runs/drawn")
    draw_run(folder.url, "title")
    assert not folder.exists(CURVE)
    write_history(folder, [line(1, 0.4)])
    draw_run(folder.url, "title")
    assert folder.read(CURVE).startswith(b"\x89PNG")
