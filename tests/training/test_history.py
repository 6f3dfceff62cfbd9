"""What a run tells: lines that come back, and the same figures in TensorBoard."""

from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bigearth_cube.storage import Storage
from training.history import EpochLine, read_history, tensorboard, write_history

LINE = EpochLine(1, 0.5, 0.6, 0.7, 0.35, 1e-3, 200.0, 0.01, 12.5, loader_requests=12)


def test_lines_come_back_and_old_ones_without_later_fields_too(tmp_path: Path) -> None:
    folder = Storage(tmp_path)
    lines = [LINE, replace(LINE, epoch=2, validation_ap_macro=0.4)]
    write_history(folder, lines)
    assert read_history(folder) == lines
    assert read_history(folder, 1) == lines[:1]
    (tmp_path / "metrics.jsonl").write_text(
        '{"epoch": 1, "train_loss": 0.5, "validation_loss": null, "validation_f1": null, '
        '"threshold": 0.5, "learning_rate": 0.1, "patches_per_s": 9.0, "wait_share": 0.0, '
        '"seconds": 1.0}\n'
    )
    assert read_history(folder)[0].loader_bytes == 0


def test_tensorboard_shows_every_figure_by_epoch(tmp_path: Path) -> None:
    with tensorboard(tmp_path) as tell:
        tell(LINE)
        tell(replace(LINE, epoch=2, train_loss=0.25))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "validation_ap_macro" not in events.Tags()["scalars"]
    losses = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert losses == [(1, 0.5), (2, 0.25)]
    assert events.Scalars("loader_requests")[0].value == 12
    assert events.Scalars("validation_f1")[0].value == pytest.approx(0.7)
