"""The demo tells its whole story, however small the archive."""

import json
from pathlib import Path

import pytest

from bigearth_cube.storage import Storage
from training import demo
from training.demo import run_demo
from training.recipes import recipe


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_runs_in_a_bucket_that_is_named_and_measures_the_machine(
    tmp_path: Path,
    bucket: str,
    s3_options: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_options["secret"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_options["endpoint_url"])
    monkeypatch.setattr(demo, "DEMO_S", 0.0)  # no time at all: the fewest epochs
    lines: list[str] = []
    run_demo(tmp_path, s3_url=bucket, n_patches=40, say=lines.append)
    assert f"using {bucket}/demo-" in lines[0]
    assert any("so 3 of the recipe's 9 epochs are trained" in line for line in lines)
    keys = {key.split("/", 1)[1] for key, _ in Storage(bucket, s3_options).list()}
    assert {"cube/cube.zarr/zarr.json", "cube/intake.yaml", "runs/tb-cnn-small/best.pt"} <= keys


def test_a_demo_leaves_nothing_to_the_next_one_of_its_process() -> None:
    for _ in range(2):
        with demo._s3(None, str) as (url, options):
            storage = Storage(url, options)
            assert list(storage.list()) == []
            storage.write("runs/tb-cnn-small/metrics.jsonl", b"")


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


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_shows_learning(tmp_path: Path, seed: int) -> None:
    # So many as an idle machine of two cores has time for; a busy one would choose fewer.
    *_, most_frequent, on_means, _, ours = run_demo(tmp_path, n_epochs=6, seed=seed)
    assert most_frequent.model.startswith("most frequent")
    assert on_means.model == "logistic regression, band means"
    for baseline in (most_frequent, on_means):
        assert ours.f1 is not None
        assert baseline.f1 is not None
        assert ours.f1 >= baseline.f1 + 0.15
