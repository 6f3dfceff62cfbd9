"""The demo tells its whole story, however small the archive."""

import json
from pathlib import Path

import pytest

from training import demo
from training.demo import run_demo
from training.recipes import recipe


def test_the_demo_leaves_pictures_and_a_table_that_says_what_is_published(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = run_demo(tmp_path / "demo", n_patches=60, n_epochs=1, seed=1, say=lines.append)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "learning-curve.png",
        "look-alikes.png",
        "metrics.jsonl",
        "montage.png",
        "results.json",
        "results.md",
    }
    text = "\n".join(lines)
    for stage in ("archive", "ingest", "search", "train", "evaluate", "embed", "pictures"):
        assert f" s  {stage}: " in text
    assert (tmp_path / "demo" / "results.md").read_text().strip() in text
    assert [row.origin for row in rows] == ["published"] * 4 + ["measured"] * 4
    for row in rows:
        assert row.data.startswith("real" if row.origin == "published" else "synthetic")
    assert rows[-1].model == "TB-CNN"
    about = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert len(about["rows"]) == 8
    assert about["seconds"]["total"] >= about["seconds"]["train"] > 0


def test_a_slow_machine_trains_fewer_epochs_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe("tb-cnn-small", "label_19")
    told: list[str] = []
    monkeypatch.setattr(demo, "steps_per_s", lambda _: 1000.0)
    assert demo._within(config, 3000, None, 200.0, told.append) == config
    assert told == []
    monkeypatch.setattr(demo, "steps_per_s", lambda _: 1.5)
    fewer = demo._within(config, 3000, None, 200.0, told.append)
    assert 3 <= fewer.epochs < config.epochs
    assert f"so {fewer.epochs} of the recipe's {config.epochs} epochs" in told[0]
    assert demo._within(config, 3000, 2, 200.0, told.append).epochs == 2
