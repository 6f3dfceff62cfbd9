"""Tables trained anew beside the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorchcv.models.bninception import bninception

from bigearth_cube.cube import Cube
from bigearth_cube.errors import InvalidInputError
from training.checkpoint import load
from training.cli import main
from training.compare import TABLES, compare, table_of
from training.provenance import commit
from training.recipes import recipe
from training.results import TALK_2019


def test_the_2019_table_runs_whole_and_a_row_without_weights_says_so(
    learnable_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    out = tmp_path / "out"
    arguments = (
        *("compare", learnable_url, "--table", "igarss2019", "--small", "--epochs", "1"),
        *("--subset", "40", "--weights", str(tmp_path / "weights"), "--out", str(out)),
        *("--data", "synthetic: v2"),
    )
    main([*arguments])
    text = capsys.readouterr().out
    assert f"weights missing: {tmp_path}/weights/bninception.pth" in text
    assert text == (out / "comparison.md").read_text()
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((out / "comparison.json").read_text())
    measured = {row["model"]: row for row in told["rows"] if row["origin"] == "measured"}
    assert list(measured) == [row.model for row in TALK_2019]
    assert measured["Inception-v2, last layer"]["f1"] is None
    assert all(measured[m]["f1"] >= 0 for m in ("S-CNN RGB", "S-CNN all bands", "TB-CNN"))
    assert measured["TB-CNN"]["data"] == "synthetic: v2, 19 classes"
    assert [report["protocol"] for report in told["leakage"]] == ["v2-official", "paper"]
    assert told["commit"] == commit()
    assert told["evaluations"]["TB-CNN"]["selection"] == told["selections"]["test"]
    assert told["evaluations"]["TB-CNN"]["trained_on"] == told["selections"]["train"]

    # With weights the row runs; what was finished is not trained again.
    finished = next((out / "tb-cnn-label_19-small").glob("step-*.pt")).stat().st_mtime_ns
    torch.manual_seed(0)
    torch.save(bninception().state_dict(), tmp_path / "weights/bninception.pth")
    main([*arguments, "--json"])
    again = json.loads(capsys.readouterr().out)
    by_name = {row["model"]: row for row in again["rows"] if row["origin"] == "measured"}
    assert by_name["Inception-v2, last layer"]["f1"] is not None
    assert by_name["TB-CNN"] == measured["TB-CNN"]
    assert next((out / "tb-cnn-label_19-small").glob("step-*.pt")).stat().st_mtime_ns == finished
    trained = load(str(out / "inception-v2-imagenet-label_19-small"))
    published = torch.load(tmp_path / "weights/bninception.pth")
    trunk = {k: v for k, v in published.items() if k.startswith("features.")}
    kept = {k.removeprefix("trunk.0."): v for k, v in trained.model.items() if "trunk" in k}
    assert all(torch.equal(kept[k.removeprefix("features.")], v) for k, v in trunk.items())


@pytest.mark.parametrize("archive", ["v1", "v2"])
@pytest.mark.parametrize("name", TABLES)
def test_every_entry_has_a_recipe_a_run_of_its_own_and_its_published_rows(
    name: str, archive: str
) -> None:
    table = table_of(name, archive)  # type: ignore[arg-type]
    assert len({entry.key for entry in table.entries}) == len(table.entries)
    for entry in table.entries:
        assert recipe(entry.recipe, entry.labels).labels == entry.labels
    known = {entry.published for entry in table.entries}
    assert known & {row.model for row in table.published}
    assert all(row.origin == "published" for row in table.published)


def test_bigearthnet_mm_crosses_inputs_beginnings_and_nomenclatures() -> None:
    titles = {entry.title for entry in table_of("mm", "v1").entries}
    assert titles == {
        f"ResNet50 {inputs}, {n} classes, {begun}"
        for inputs in ("S1", "S2", "S1+S2")
        for n in (19, 43)
        for begun in ("from scratch", "ImageNet")
    }


def test_a_row_that_reads_what_the_cube_lacks_says_so(learnable: Cube, tmp_path: Path) -> None:
    table = table_of("mm", "v2")
    assert len(table.entries) == 6
    with pytest.raises(InvalidInputError, match="unknown table 'x'"):
        compare(learnable, "x", out=str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="is not for a cube of archive v2"):
        compare(learnable, "mm", out=str(tmp_path), protocol="v1-official")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_tables_of_both_sensors_run_on_pairs(paired: Cube, tmp_path: Path) -> None:
    made = compare(paired, "mm", out=str(tmp_path), small=True, epochs=1, subset=20)
    figures = {row.model: row.f1 for row in made.rows if row.origin == "measured"}
    assert [f1 is None for f1 in figures.values()] == [False, True] * 3
    assert "F2 by class:" in made.as_text()
    rows = np.concatenate([e.predictions.rows for e in made.evaluations.values()])
    assert paired.column("s1/r10m/present")[rows].all()
    reben = compare(paired, "reben", out=str(tmp_path), small=True, epochs=1, subset=20)
    assert "AP macro" in reben.as_text()
    by_model = {row.model: row for row in reben.rows if row.origin == "measured"}
    assert by_model["ResNet50 S1+S2"].figure("AP macro") is not None
    assert "needs timm" in by_model["RDNet S2"].note
