"""Which code made a result: the commit of a checkout, and nobody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from training.provenance import commit_of


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_tracked_file_names_its_commit_and_whether_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a hook of the repository that is tested sets them
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def git(*arguments: str) -> str:
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *own, *arguments], check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    module = tmp_path / "module.py"
    module.write_text("1")
    assert commit_of(module) is None
    git("init", "-q")
    assert commit_of(module) is None
    git("add", "module.py")
    git("commit", "-q", "-m", "one")
    assert commit_of(module) == git("rev-parse", "HEAD")
    module.write_text("2")
    assert commit_of(module) == git("rev-parse", "HEAD") + "+"
    installed = tmp_path / "site-packages" / "module.py"
    installed.parent.mkdir()
    installed.write_text("1")
    assert commit_of(installed) is None
