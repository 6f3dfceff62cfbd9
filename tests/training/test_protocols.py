"""Splits by protocol, and how far test lies from train."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bigearth_cube.archive.synthetic import write_archive
from bigearth_cube.cube import Cube, open_cube
from bigearth_cube.errors import InvalidInputError
from bigearth_cube.ingest import ingest
from bigearth_cube.nomenclature import SPLITS
from training.cli import main
from training.protocols import Splits, leakage, nearest_m, protocols_of, split_cube


@pytest.fixture(scope="module", params=["v1", "v2"])
def synthetic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cube:
    """A cube of 200 synthetic patches in their published places."""
    folder = tmp_path_factory.mktemp(request.param)
    write_archive(folder / "archive", archive=request.param, n_patches=200, seed=3, workers=1)
    ingest([str(folder / "archive")], str(folder / "cube"), workers=1)
    return open_cube(str(folder / "cube"))


def every_split(cube: Cube) -> Iterator[Splits]:
    for protocol in protocols_of(cube):
        yield split_cube(cube, protocol, "label_19")


def test_splits_share_no_patch_and_have_none_that_is_flagged_or_without_class(
    synthetic: Cube,
) -> None:
    flagged = synthetic.column("flagged_snow") | synthetic.column("flagged_cloud_or_shadow")
    assert flagged.any()
    for splits in every_split(synthetic):
        rows = np.concatenate([part.rows for part in splits.in_order])
        assert len(np.unique(rows)) == len(rows)
        assert not flagged[rows].any()
        assert synthetic.labels("label_19", rows).any(axis=1).all()


def test_the_papers_split_is_60_20_20_and_the_official_one_is_the_archives(synthetic: Cube) -> None:
    paper, official = every_split(synthetic)
    n = sum(map(len, paper.in_order))
    assert [len(part) for part in paper.in_order] == pytest.approx(
        [0.6 * n, 0.2 * n, 0.2 * n], abs=1
    )
    assert sum(map(len, official.in_order)) == n
    for name, part in zip(SPLITS, official.in_order, strict=True):
        assert set(synthetic.column("split")[part.rows]) == {name}


def test_a_seed_gives_one_split_and_a_subset_is_part_of_it(synthetic: Cube) -> None:
    one, same, other = (split_cube(synthetic, "paper", "label_19", seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.test != other.test
    few = split_cube(synthetic, "paper", "label_19", seed=1, subset=50)
    for part, whole in zip(few.in_order, one.in_order, strict=True):
        assert np.isin(part.rows, whole.rows).all()
    assert sum(map(len, few.in_order)) == pytest.approx(50, abs=2)
    assert few.test.query == {"protocol": "paper", "seed": 1, "subset": 50, "split": "test"}


def test_names_that_rise_and_fall_are_put_in_order_without_ending_the_process() -> None:
    code = """
import numpy as np
from training.protocols import by_name
names = [f"S2A_MSIL2A_20170613T101031_{i:06d}" for i in (*range(500), *reversed(range(500)))]
column = np.array(names, np.dtypes.StringDType())
assert [names[i] for i in by_name(column)] == sorted(names)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_nearest_training_patch_is_the_one_a_plain_search_finds(synthetic: Cube) -> None:
    splits = split_cube(synthetic, "paper", "label_19")
    found = nearest_m(synthetic, splits.train.rows, splits.test.rows)
    epsg, ulx, uly = (synthetic.column(name) for name in ("epsg", "ulx", "uly"))
    n_compared = 0
    for row, distance_m in zip(splits.test.rows, found, strict=True):
        zone = splits.train.rows[epsg[splits.train.rows] == epsg[row]]
        if not len(zone):
            continue
        plain = np.hypot(
            ulx[zone].astype(float) - ulx[row], uly[zone].astype(float) - uly[row]
        ).min()
        if plain < 50_000:  # beyond, a patch of the next zone may be nearer
            assert distance_m == pytest.approx(plain, rel=2e-3, abs=0.5)
            n_compared += 1
    assert n_compared > 5


def test_leakage_counts_each_share_with_those_that_are_nearer(synthetic: Cube) -> None:
    for splits in every_split(synthetic):
        report = leakage(synthetic, splits)
        assert (report.n_train, report.n_test) == (len(splits.train), len(splits.test))
        shares = list(report.shares.values())
        assert shares == sorted(shares)
        quantiles = list(report.quantiles_m.values())
        assert quantiles == sorted(quantiles)


def test_a_patch_is_at_its_own_place(paired: Cube) -> None:
    rows = paired.rows[:5]
    assert nearest_m(paired, rows, rows) == pytest.approx(0, abs=1e-6)


def test_patches_without_sentinel_1_are_left_out_where_it_is_read(paired: Cube) -> None:
    n_all, n_pairs = (
        sum(map(len, split_cube(paired, "paper", "label_19", with_s1=s1).in_order))
        for s1 in (False, True)
    )
    assert n_all - n_pairs == 2


def test_protocols_of_another_archive_and_empty_splits_are_refused(paired: Cube) -> None:
    with pytest.raises(InvalidInputError, match="'v1-official' is not for a cube of archive v2"):
        split_cube(paired, "v1-official", "label_19")
    with pytest.raises(InvalidInputError, match="unknown protocol 'random'"):
        split_cube(paired, "random", "label_19")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="is left for validation"):
        split_cube(paired, "paper", "label_19", subset=2)


def test_the_command_reports_leakage_alone(
    paired_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["compare", paired_url, "--leakage", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [report["protocol"] for report in told] == ["paper", "v2-official"]
    main(["compare", paired_url, "--leakage"])
    assert "median distance to train" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
