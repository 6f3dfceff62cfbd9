"""What the Dockerfile says holds, without a container engine.

Fast tests read it. The slow one builds it: every stage is a layer over this machine's own root
(overlayfs), in which the commands of RUN are run as they stand; then each image's program is
started as its user, on a file system that takes no writes but to /tmp.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click import Command
from distributed.cli import dask_scheduler, dask_worker

import training.cli
from bigearth_cube.cli import cli

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "terraform" / "images"
MODULES = ROOT / "terraform" / "modules"
HADOLINT = ROOT / ".venv-checkov" / "bin" / "hadolint"
TARGETS = ("service", "worker", "train")
PORT = 8080
MOST_MB = 400


@dataclass
class Stage:
    """One FROM and what follows it, but for what the stage it is from has."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    text = re.sub(r"^#.*\n", "", (IMAGES / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, name = rest.split(" AS ")
            found[name] = Stage(base)
        elif word:
            list(found.values())[-1].steps.append((word, rest))
    return found


def steps_of(name: str, word: str) -> list[str]:
    """Arguments of an instruction in a stage and those it is from, the last ones last."""
    stage = stages()[name]
    before = steps_of(stage.base, word) if stage.base in stages() else []
    return before + [rest for at, rest in stage.steps if at == word]


def test_bases_are_named_by_their_full_version() -> None:
    bases = {s.base for s in stages().values()} - stages().keys()
    assert sorted(base.split(":")[0] for base in bases) == ["node", "python"]
    for base in bases:
        assert re.fullmatch(r"\w+:\d+\.\d+\.\d+-\w+(-\w+)?|\w+@sha256:[0-9a-f]{64}", base)


@pytest.mark.parametrize("target", TARGETS)
def test_no_image_runs_as_root(target: str) -> None:
    assert steps_of(target, "USER") == ["10001:10001"]
    module = {"service": "service", "worker": "dask", "train": "training"}[target]
    text = (MODULES / module / "main.tf").read_text()
    assert re.findall(r'user\s+= "(\d+)"', text) == ["10001"]
    assert re.findall(r"readonlyRootFilesystem = (\w+)", text) == ["true"]


@pytest.mark.parametrize("target", TARGETS)
def test_a_program_may_write_where_its_image_says_so(target: str) -> None:
    """Fargate gives a volume to root alone, unless the image names its folder; Batch mounts one."""
    assert steps_of(target, "VOLUME") == ['["/tmp"]']
    module = {"service": "service", "worker": "dask", "train": "training"}[target]
    text = (MODULES / module / "main.tf").read_text()
    if module == "training":
        assert (
            'tmpfs            = [{ containerPath = "/tmp", size = 4096, mountOptions = ["exec"] }]'
            in text
        )
    else:
        assert 'containerPath = "/tmp", readOnly = false' in text


def test_a_trainer_can_compile() -> None:
    (installed,) = [run for word, run in stages()["train"].steps if word == "RUN"]
    assert {"gcc", "libc6-dev"} <= set(installed.split())


def test_what_is_copied_is_there_and_not_ignored() -> None:
    rules = (IMAGES / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    for stage in stages().values():
        for word, rest in stage.steps:
            if word == "COPY" and "--from" not in rest:
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(source == k or source.startswith(f"{k}/") for k in kept), source
    dropped = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    assert any(fnmatch("node_modules", rule) for rule in dropped)


def test_the_health_check_asks_the_port_that_the_module_opens() -> None:
    (check,) = steps_of("service", "HEALTHCHECK")
    assert f"127.0.0.1:{PORT}/healthz" in check
    assert steps_of("service", "EXPOSE") == [str(PORT)]
    text = (MODULES / "service" / "main.tf").read_text()
    assert re.findall(r"port = (\d+)\n", text)[0] == str(PORT)
    assert 'path                = "/healthz"' in text


def test_hadolint_has_nothing_to_say() -> None:
    if not HADOLINT.exists():
        pytest.skip("hadolint is not installed; make check-terraform does it")
    done = subprocess.run(
        [HADOLINT, IMAGES / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


# What expressions in a command of a task stand for.
VALUES = {
    "var.cube_urls": ["s3://bucket/cube"],
    "tostring(local.port)": ["8080"],
    "local.scheduler": ["tcp://scheduler.internal:8786"],
    "tostring(var.worker.threads)": ["2"],
    '"${local.worker_ports.from}:${local.worker_ports.to}"': ["9000:9099"],
    '"${local.nanny_ports.from}:${local.nanny_ports.to}"': ["9100:9199"],
    '"Ref::cube"': ["s3://bucket/cube"],
    '"Ref::recipe"': ["tb-cnn"],
    '"Ref::out"': ["s3://bucket/runs/tb-cnn"],
}


def commands_of(module: str) -> list[list[str]]:
    """Commands that the task definitions of a module give their containers."""
    text = (MODULES / module / "main.tf").read_text()
    found = []
    for body in re.findall(r"command\s+= (concat\(.*\)|\[[^\[\]]*\])\n", text):
        parts = re.findall(r'"[^"]*"|[\w.]+\([\w.]+\)|(?:var|local)\.[\w.]+', body)
        command: list[str] = []
        for part in parts:
            command += VALUES[part] if part in VALUES else [json.loads(part)]
        found.append(command)
    return found


def accepts(command: Command, arguments: list[str]) -> None:
    """Parse as the program does; what it does not know is an error."""
    with command.make_context(command.name, list(arguments)) as context:
        assert context.params


def test_task_definitions_name_options_that_the_programs_have() -> None:
    (serve,) = commands_of("service")
    accepts(cli.commands[serve[0]], serve[1:])
    assert serve[1:] == ["s3://bucket/cube", "--host", "0.0.0.0", "--port", "8080"]
    scheduler, worker, ingest = commands_of("dask")
    assert ingest == ["bec", "--help"]  # whoever runs it says what
    assert scheduler[:2] == ["dask", "scheduler"]
    accepts(dask_scheduler.main, scheduler[2:])
    assert worker[:2] == ["dask", "worker"]
    accepts(dask_worker.main, worker[2:])
    (fit,) = commands_of("training")
    accepts(training.cli.cli.commands[fit[0]], fit[1:])
    assert "--resume" in fit


class Builder:
    """Builds stages as layers over this machine, one folder a layer."""

    def __init__(self, folder: Path, context: Path) -> None:
        self.folder, self.context = folder, context
        self.built: list[str] = []
        python = Path(sys.base_prefix).resolve() / "bin"
        self.path = f"{python}:{os.environ['PATH']}"

    def build(self, name: str) -> None:
        if name in self.built:
            return
        stage = stages()[name]
        if stage.base in stages():
            self.build(stage.base)
        for word, rest in stage.steps:
            if word == "COPY" and (source := re.match(r"--from=(\S+)", rest)):
                self.build(source[1])
        layer = self.folder / name
        if stage.base in stages():
            # Not a layer below: layers may not lie in one another, and the lowest is the root.
            subprocess.run(["cp", "-a", self.folder / stage.base, layer], check=True)
        else:
            layer.mkdir()
        self.built.append(name)
        for word, rest in stage.steps:
            if word == "RUN":
                self.inside(name, f"mkdir -p {self.at(name)} && cd {self.at(name)} && {rest}")
            elif word == "COPY":
                self.copy(name, rest)

    def at(self, name: str) -> str:
        return (steps_of(name, "WORKDIR") or ["/"])[-1]

    def copy(self, name: str, rest: str) -> None:
        *sources, target = rest.split()
        origin = ""
        if sources[0].startswith("--from="):
            origin = sources.pop(0).removeprefix("--from=")
        target = os.path.join(self.at(name), target)
        lines = [f"mkdir -p {target if len(sources) > 1 else os.path.dirname(target)}"]
        for source in sources:
            found = os.path.join("/shown", source.lstrip("/"))
            # A folder's content is copied, as Docker does.
            lines.append(
                f"if [ -d {found} ]; then mkdir -p {target} && cp -a {found}/. {target}; "
                f"else cp -a {found} {target}; fi"
            )
        self.inside(name, " && ".join(lines), origin=origin)

    def inside(
        self, name: str, script: str, *, origin: str = "", user: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a script in a stage; as its user, the root takes no writes but to /tmp."""
        command = self.command(name, script, origin=origin, user=user)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
        assert done.returncode == 0, f"{name}: {script}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def command(self, name: str, script: str, *, origin: str = "", user: bool = False) -> list[str]:
        work, root = self.folder / "work", self.folder / "root"
        for folder in (work, root):
            folder.mkdir(exist_ok=True)
        layer = self.folder / name
        lines = [
            "set -e",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={layer},workdir={work} {root}",
            f"for d in proc dev sys; do mount --rbind /$d {root}/$d; done",
        ]
        if not user:
            shown = self.folder / origin if origin else self.context
            lines += [f"mkdir -p {root}/shown", f"mount --bind {shown} {root}/shown"]
        environment = [f"{k}={v}" for k, v in self.environment(name).items()]
        run = ["chroot", str(root), "env", *environment, "sh", "-c", script]
        if user:
            lines += [
                f"chmod o+x {root}/root",  # Python of this machine may lie there
                f"mount -o remount,ro {root}",
                f"mount -t tmpfs -o mode=1777 t {root}/tmp",
            ]
            run[1:1] = ["--userspec=10001:10001"]
        return ["unshare", "--mount", "sh", "-c", "\n".join([*lines, f"exec {shlex.join(run)}"])]

    def environment(self, name: str) -> dict[str, str]:
        found = {"PATH": self.path}
        for rest in steps_of(name, "ENV"):
            for pair in shlex.split(rest):
                key, _, value = pair.partition("=")
                found[key] = value.replace("$PATH", self.path)
        return found


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("npm"):
        pytest.skip("layers need root and the command unshare; the explorer needs npm")
    folder = tmp_path_factory.mktemp("images")
    context = folder / "context"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("the context of a build is what git has, and this is no checkout")
    for name in listed.stdout.splitlines():
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, context / name)
    return Builder(folder, context)


def size_mb(builder: Builder, target: str) -> float:
    done = builder.inside(target, "du -sk /venv /program | cut -f1", user=True)
    return sum(map(int, done.stdout.split())) / 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_service_starts_on_a_file_system_without_writes(
    builder: Builder, cube_url: str
) -> None:
    builder.build("service")
    assert size_mb(builder, "service") < MOST_MB
    refused = (
        "import importlib.util as u; print([m for m in ('torch', 'rasterio') if u.find_spec(m)])"
    )
    done = builder.inside("service", f'cd / && python -c "{refused}"', user=True)
    assert done.stdout == "[]\n"
    assert "Serve cubes" in builder.inside("service", "bec serve --help", user=True).stdout
    listed = builder.inside("service", "ls /program/bigearth_cube/service/explorer/dist", user=True)
    assert "index.html" in listed.stdout
    placed = builder.folder / "service" / "cube"
    shutil.copytree(cube_url, placed)
    placed.chmod(0o755)
    (check,) = steps_of("service", "HEALTHCHECK")
    health = shlex.join(json.loads(check[check.index("[") :])).replace(str(PORT), "18080")
    script = f"bec serve /cube --port 18080 2>/tmp/told & i=0; until {health} 2>/dev/null; do \
        i=$((i+1)); [ $i -lt 60 ] || {{ cat /tmp/told >&2; exit 1; }}; sleep 1; done; kill $!"
    began = time.monotonic()
    builder.inside("service", script, user=True)
    assert time.monotonic() - began < 120


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_worker_has_dask_and_bec(builder: Builder) -> None:
    builder.build("worker")
    for command, told in (
        ("dask scheduler --help", "--port"),
        ("dask worker --help", "--worker-port"),
        ("bec ingest --help", "--scheduler"),
        ("python -c 'import rasterio; print(rasterio.__version__)'", "."),
    ):
        assert told in builder.inside("worker", command, user=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_trainer_has_torch_and_the_training_program(builder: Builder) -> None:
    builder.build("train")
    entry = shlex.join(json.loads(steps_of("train", "ENTRYPOINT")[0]))
    assert (
        "--resume"
        in builder.inside("train", f"cd /program && {entry} fit --help", user=True).stdout
    )
    drawn = "import torch, matplotlib.pyplot as p; p.figure(); print(torch.ones(2).sum().item())"
    assert "2.0" in builder.inside("train", f"python -c '{drawn}'", user=True).stdout
