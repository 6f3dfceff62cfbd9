"""The bec command as a user meets it: output, exit codes, one line an error."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest

from bigearth_cube.cli import cli, main
from bigearth_cube.cube import open_cube
from bigearth_cube.errors import StorageError
from bigearth_cube.retrieval import Metric
from bigearth_cube.terminal import dask_client


def bec(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bigearth_cube", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(env or {})},
        timeout=120,
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The same in this process."""
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def commands(group: click.Group = cli, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_has_an_example_and_its_options_are_explained(name: str) -> None:
    command = commands()[name]
    assert command.help is not None
    assert f"bec {name} " in command.help
    assert "2 on wrong input" in command.get_help(click.Context(command))
    assert "130 when interrupted" in command.get_help(click.Context(command))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("archive", "k"):
            assert parameter.help, parameter.name


def test_help_answers_without_importing_what_commands_need() -> None:
    code = "import sys, bigearth_cube.cli; print(*{'numpy', 'zarr', 'botocore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(("module", "name"), [("bigearth_cube", "bec"), ("training", "training")])
def test_ctrl_c_while_modules_load_is_one_line(module: str, name: str) -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{name}: interrupted\n")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty synthetic v2 pairs on disk."""
    folder = tmp_path_factory.mktemp("archive") / "v2"
    done = bec("synth", str(folder), "--archive", "v2", "--patches", "40", "--seed", "1")
    assert (done.returncode, done.stderr.strip()) == (0, ""), done.stderr
    assert done.stdout == f"wrote 40 patches in the v2 layout to {folder}\n"
    return folder


@pytest.fixture(scope="module")
def cube_of_archive(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = str(tmp_path_factory.mktemp("made") / "cube")
    done = bec("ingest", str(archive), url, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"s2 +40 +40 +0 +0\n", done.stdout)
    assert re.search(r"s1 +40 +40 +0 +0\n", done.stdout)
    assert f"{url}: release r1, 40 patches" in done.stdout
    return url


def test_a_second_ingest_says_there_is_nothing_new(
    archive: Path, cube_of_archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "ingest", str(archive), cube_of_archive, "--workers", "1")
    assert code == 0
    assert "nothing new, 40 patches" in out


def test_ingest_exits_with_3_and_names_what_it_set_aside(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(archive, tmp_path / "a")
    file = next((tmp_path / "a" / "BigEarthNet-S2").rglob("*_B03.tif"))
    file.write_bytes(file.read_bytes()[:100])
    code, out, _ = run(
        capsys, "ingest", str(tmp_path / "a"), str(tmp_path / "cube"), "--workers", "1"
    )
    assert code == 3
    assert re.search(r"s2 +40 +39 +0 +1\n", out)
    assert re.search(r"s1 +40 +39 +1 +0\n", out)
    assert f"quarantined: {file.parent.name}: " in out
    assert str(file) in out
    assert open_cube(str(tmp_path / "cube")).n_patches == 39


def test_looking_into_a_cube(cube_of_archive: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", cube_of_archive, "--json")
    facts = json.loads(out)
    assert (code, facts["patches"], facts["rows"], facts["archive"]) == (0, 40, 256, "v2")
    assert facts["groups"]["s2/r10m"]["shape"] == [256, 4, 120, 120]
    code, out, _ = run(capsys, "info", cube_of_archive)
    assert "patches  40" in out
    code, out, _ = run(capsys, "stats", cube_of_archive, "--json")
    counts = json.loads(out)
    assert sum(cells["total"]["all"] for cells in counts["split"].values()) == 40
    code, out, _ = run(capsys, "stats", cube_of_archive)
    flagged = sum(cells["total"]["all"] for cells in counts.get("flag", {}).values())
    assert out.startswith(f"40 patches, {40 - flagged} of them unflagged\n")
    for title, rows in counts.items():
        for name, cells in rows.items():
            numbers = " +".join(f"{n['all']:,}" for n in cells.values())
            assert re.search(rf"^{re.escape(name)} +{numbers}$", out, re.MULTILINE), (title, name)
            numbers = " +".join(f"{n['unflagged']:,}" for n in cells.values())
            if title != "flag":
                part = out[out.index(f"{title}, unflagged") :]
                assert re.search(rf"^{re.escape(name)} +{numbers}$", part, re.MULTILINE), name
    code, out, _ = run(capsys, "releases", cube_of_archive, "--json")
    assert [r["name"] for r in json.loads(out)] == ["r1"]
    code, out, _ = run(capsys, "releases", cube_of_archive)
    assert re.search(r"r1 +40 +0\.\.255", out)


def test_stats_draws_what_it_prints(
    cube_of_archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "counts.png"
    code, out, err = run(capsys, "stats", cube_of_archive, "--json", "--plot", str(file))
    assert (code, err) == (0, f"drawn to {file}\n")
    assert json.loads(out) == open_cube(cube_of_archive).counts()
    assert file.read_bytes().startswith(b"\x89PNG")
    code, out, err = run(capsys, "stats", cube_of_archive, "--plot", str(tmp_path / "c.docx"))
    assert (code, out) == (2, "")
    assert "cannot draw to" in err
    assert len(err.strip().splitlines()) == 1


def test_drawing_without_matplotlib_names_the_extra(cube_of_archive: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; from bigearth_cube.cli import main; "
        f"main(['stats', {cube_of_archive!r}, '--plot', 'x.png'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == (
        'Error: this command needs matplotlib: pip install "bigearth-cube[train]"'
    )
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_is_made_of_lists_and_says_that_it_has_no_pixels(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "cube")
    lists = [str(path) for path in archive.rglob("metadata*.parquet")]
    code, out, _ = run(capsys, "ingest", "--metadata-only", *lists, url)
    assert code == 0
    assert f"{url}: release r1, 40 patches" in out
    code, out, _ = run(capsys, "info", url)
    assert (code, out.splitlines()[-1]) == (0, "no pixels: it was made from lists alone")
    assert json.loads(run(capsys, "info", url, "--json")[1])["groups"] == {}
    assert run(capsys, "verify", url)[0] == 0
    code, out, err = run(capsys, "ingest", str(archive), url)
    assert (code, out) == (2, "")
    assert "has no pixels: it was made from lists alone" in err
    assert len(err.strip().splitlines()) == 1


def test_search_prints_ids_and_saves_the_selection(
    cube_of_archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bigearth_cube.search import Selection

    out_file = str(tmp_path / "train.parquet")
    code, out, _ = run(
        capsys, "search", cube_of_archive, "--split", "train", "--out", out_file, "--json"
    )
    facts = json.loads(out)
    saved = Selection.load(out_file)
    assert code == 0
    assert facts["patches"] == len(saved) > 0
    assert facts["digest"] == saved.digest
    code, out, err = run(capsys, "search", cube_of_archive, "--filter", "\"bec:sesaon\" = 'x'")
    assert code == 2
    assert "bec:sesaon" in err
    assert "bec:season" in err
    code, out, err = run(capsys, "search", cube_of_archive, "--bbox", "a,b,c,d")
    assert code == 2
    assert "west,south,east,north" in err


def test_a_reader_that_has_enough_is_no_damage(cube_of_archive: str) -> None:
    for arguments in (["search", cube_of_archive, "--limit", "40"], ["stats", cube_of_archive]):
        process = subprocess.Popen(
            [sys.executable, "-m", "bigearth_cube", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.close()  # before the first line is written
        assert process.stderr is not None
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait(timeout=60) == 141


def test_similar_ranks_by_the_metric_asked_for(
    cube_of_archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cube_of_archive, tmp_path / "cube")
    cube = open_cube(str(tmp_path / "cube"))
    names = dict(zip(cube.items["bec:row"].to_pylist(), cube.items["id"].to_pylist(), strict=True))
    query, near, alike = (int(row) for row in cube.rows[:3])
    vectors = np.full((cube.n_rows, 2), (0, 9), np.float32)
    vectors[query], vectors[near], vectors[alike] = (1, 1), (2, 1), (5, 5)
    cube.write_embeddings("mine", vectors)
    first = {}
    for metric in get_args(Metric):
        code, out, _ = run(
            capsys,
            *("similar", str(tmp_path / "cube"), "--patch", names[query], "--model", "mine"),
            *("-k", "1", "--metric", metric, "--json"),
        )
        assert code == 0
        (first[metric],) = (neighbor["id"] for neighbor in json.loads(out))
    assert first.pop("cosine") == names[alike]
    assert set(first.values()) == {names[near]}  # for hamming both are at 0: the first row


def test_verify_exits_with_1_and_names_the_damaged_object(
    cube_of_archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cube_of_archive, tmp_path / "cube")
    code, out, _ = run(capsys, "verify", str(tmp_path / "cube"))
    assert code == 0
    assert "0 damaged or missing" in out
    (tmp_path / "cube/cube.zarr/label_19/c/0/0").unlink()
    code, out, _ = run(capsys, "verify", str(tmp_path / "cube"), "--json")
    assert code == 1
    patches = open_cube(cube_of_archive).items["id"].to_pylist()
    key = "cube.zarr/label_19/c/0/0"
    assert json.loads(out)["damaged"] == [
        {"key": key, "reason": "object is missing", "rows": [0, 255], "patches": patches}
    ]
    _, out, _ = run(capsys, "verify", str(tmp_path / "cube"))
    assert f"  {len(patches)} patches: {patches[0]} to {patches[-1]}" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info TMP/none", "no cube at TMP/none"),
        ("ingest TMP/none TMP/made", "TMP/none does not exist"),
        ("info s3://", "names no bucket"),
        ("synth TMP/made --patches 0", "0 is not in the range"),
        ("synth TMP/file/made --patches 4", "bec: TMP/file/made: Not a directory"),
        ("catalog build TMP/file/made", "bec: TMP/file/made: Not a directory"),
        ("synth s3://bucket/archive --patches 5", "is a URL; DIRECTORY is a local folder"),
        ("catalog build s3://bucket/x", "'s3://bucket/x' is a URL; DIRECTORY is a local folder"),
        ("info TMP/none/cube.zarr", "that holds cube.zarr: name TMP/none"),
        ("search TMP/none --limit -1", "-1 is not in the range x>=0"),
        ("nonsense", "No such command"),
        ("ingest x y --scheduler none://x", "no Dask scheduler answers at none://x"),
        ("similar TMP/none --patch x --metric l2", "'l2' is not one of 'chi2', 'cosine'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, out, err = run(capsys, *arguments.replace("TMP", str(tmp_path)).split())
    assert code == 2
    assert out == ""
    assert message.replace("TMP", str(tmp_path)) in err
    assert "Traceback" not in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_scheduler_that_does_not_answer_is_told_after_the_time_given() -> None:
    began = time.monotonic()
    with (
        pytest.raises(StorageError, match="no Dask scheduler answers at tcp:"),
        dask_client("tcp://127.0.0.1:1", timeout_s=0.2),
    ):
        pass
    assert time.monotonic() - began < 5


def test_an_empty_folder_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, "ingest", str(tmp_path / "empty"), str(tmp_path / "cube"))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "cube").exists()


def test_refused_and_missing_on_s3_are_one_line_each(
    archive: Path, bucket: str, s3_options: dict[str, str]
) -> None:
    env = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_ENDPOINT_URL": s3_options["endpoint_url"],
    }
    done = bec("ingest", str(archive), "s3://not-a-bucket/cube", env=env)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "bec: bucket 'not-a-bucket' does not exist at this endpoint; "
        "create it, or check the URL and endpoint_url"
    )
    done = bec("info", f"{bucket}/x", env={**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert done.returncode == 2
    assert "cannot be reached; check endpoint_url" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_ctrl_c_says_that_half_an_archive_is_to_be_removed(workers: str, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    command = [sys.executable, "-m", "bigearth_cube", "synth", str(folder), "--workers", workers]
    process = subprocess.Popen(
        [*command, "--patches", "3000"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background lets them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    # so many that both workers are at work
    while len(list(folder.glob("BigEarthNet-S2/*/*"))) < 200 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    told = f"bec: {folder} is incomplete; remove it before you write it again"
    assert [line for line in err.splitlines() if line] == [told, "bec: interrupted"]
    assert len(list(folder.glob("BigEarthNet-S2/*/*"))) < 3000


def test_catalog_build_writes_what_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "catalog", "build", str(tmp_path / "catalog"))
    assert code == 0
    assert (tmp_path / "catalog/catalog.json").exists()
    assert str(tmp_path / "catalog/catalog.json") in out


def test_a_refusal_never_aborts_the_process(cube_of_archive: str) -> None:
    codes = [bec("search", cube_of_archive, "--bbox", "1,2,3").returncode for _ in range(10)]
    assert codes == [2] * 10
