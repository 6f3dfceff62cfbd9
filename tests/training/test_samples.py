"""TB-CNN can learn real patches."""

from pathlib import Path

import pytest
from distributed import Client

from bigearth_cube.cube import open_cube
from bigearth_cube.ingest import ingest
from training.checkpoint import load
from training.evaluate import evaluate
from training.recipes import recipe
from training.train import fit


@pytest.mark.samples
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tb_cnn_learns_the_real_v1_patches_by_heart(
    samples: Path, tmp_path: Path, dask_client: Client
) -> None:
    ingest([str(samples / "v1")], str(tmp_path / "cube"), client=dask_client)
    cube = open_cube(str(tmp_path / "cube"))
    everything = cube.search()
    assert len(everything) == 44
    config = recipe("tb-cnn-small", "label_43", batch_size=16, epochs=120, augment=False)
    fit(cube, config, train=everything, validation=everything, out=str(tmp_path / "run"))
    result = evaluate(cube, load(str(tmp_path / "run")), everything)
    assert result.row.f1 is not None
    assert result.row.f1 >= 0.9
