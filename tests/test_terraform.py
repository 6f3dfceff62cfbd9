"""Every argument of every AWS resource is one that the provider takes, and none is missing.

The provider itself is not needed: its arguments stand, with their types, in the package that
``terraform/schema`` names. ``make check-terraform`` installs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

TERRAFORM = Path(__file__).parents[1] / "terraform"
SCHEMA = TERRAFORM / "schema" / "node_modules" / "@cdktf" / "provider-aws" / "lib"
# Of Terraform itself, in any resource.
META = {"count", "for_each", "provider", "depends_on", "lifecycle", "connection", "provisioner"}
_INTERFACE = re.compile(r"export interface (\w+)[^{]*\{\n(.*?)\n\}", re.DOTALL)
_ARGUMENT = re.compile(r"#(\w+) \w+#\w+\}.*?readonly \w+(\??): ([^;\n]*)", re.DOTALL)


@dataclass(frozen=True)
class Argument:
    """What the schema says of one argument or nested block; its type as TypeScript has it."""

    required: bool
    block: Mapping[str, Argument] | None
    of_type: str = "any"

    def takes(self, value: Any) -> bool:
        """Whether a value that is written out can become one of this type; others may."""
        if isinstance(value, str) and "${" in value:
            return True
        if isinstance(value, str):
            text = value.strip('"')
            if self.of_type == "number":
                return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None
            return not self.of_type.startswith("boolean") or text in ("true", "false")
        if isinstance(value, bool):
            return self.of_type != "number"
        if isinstance(value, list) and not any(isinstance(v, dict) for v in value):
            return self.of_type not in ("number", "string") and self.of_type[:7] != "boolean"
        return True


def read_schema(kind: str) -> dict[str, Argument]:
    """Arguments of a resource (``aws_s3_bucket``) or a data source (``data.aws_partition``)."""
    folder = kind.replace("data.aws_", "data-aws-").removeprefix("aws_").replace("_", "-")
    text = (SCHEMA / folder / "index.d.ts").read_text()
    interfaces = dict(_INTERFACE.findall(text))

    def arguments(name: str) -> dict[str, Argument]:
        found = {}
        for argument, optional, of_type in _ARGUMENT.findall(interfaces[name]):
            nested = re.match(r"\w+", of_type)
            block = arguments(nested[0]) if nested and nested[0] in interfaces else None
            found[argument] = Argument(not optional, block, of_type.strip())
        return found

    (config,) = (
        name
        for name in interfaces
        if name.endswith("Config") and "TerraformMeta" in _head(text, name)
    )
    return arguments(config)


def _head(text: str, interface: str) -> str:
    return text[text.index(f"export interface {interface} ") :].split("{", 1)[0]


def faults(body: Mapping[str, Any], schema: Mapping[str, Argument], place: str) -> Iterator[str]:
    """Yield what is unknown in a block, and what is missing from it."""
    given = {name for name in body if not name.startswith("__")} - META
    for dynamic in body.get("dynamic", []):
        ((name, block),) = ((k.strip('"'), v) for k, v in dynamic.items() if not k.startswith("__"))
        given.add(name)
        for content in block["content"]:
            yield from _nested(name, content, schema, place)
    given.discard("dynamic")
    for name in sorted(given):
        if name not in schema:
            yield f"{place}: no argument {name!r}"
            continue
        if name in body and not schema[name].takes(body[name]):
            yield f"{place}: {name!r} is {body[name]}, which is no {schema[name].of_type}"
        for value in body.get(name, []) if isinstance(body.get(name), list) else []:
            if isinstance(value, dict) and value.get("__is_block__"):
                yield from _nested(name, value, schema, place)
    for name, argument in schema.items():
        if argument.required and name not in given:
            yield f"{place}: {name!r} is required"


def _nested(
    name: str, body: Mapping[str, Any], schema: Mapping[str, Argument], place: str
) -> Iterator[str]:
    if name not in schema or schema[name].block is None:
        yield f"{place}: no block {name!r}"
    else:
        yield from faults(body, schema[name].block or {}, f"{place}.{name}")


def resources() -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, place and body of every resource and data source."""
    hcl2 = pytest.importorskip("hcl2")
    found = []
    for path in sorted(TERRAFORM.glob("**/*.tf")):
        if "node_modules" in path.parts or ".terraform" in path.parts:
            continue
        with path.open() as file:
            document = hcl2.load(file)
        for word, prefix in (("resource", ""), ("data", "data.")):
            for entry in document.get(word, []):
                for kind, named in _plain(entry):
                    for name, body in _plain(named):
                        place = f"{path.relative_to(TERRAFORM)}: {prefix}{kind}.{name}"
                        found.append((prefix + kind, place, body))
    return found


def _plain(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(k.strip('"'), v) for k, v in entry.items() if not k.startswith("__")]


@pytest.fixture(scope="module")
def schema_is_here() -> None:
    if not SCHEMA.is_dir():
        pytest.skip("terraform/schema is not installed; make check-terraform does it")


@pytest.mark.usefixtures("schema_is_here")
def test_every_argument_is_one_that_the_provider_takes() -> None:
    found = resources()
    assert len(found) > 60
    assert [
        fault for kind, place, body in found for fault in faults(body, read_schema(kind), place)
    ] == []


@pytest.mark.usefixtures("schema_is_here")
def test_an_unknown_argument_and_a_missing_one_are_found() -> None:
    schema = read_schema("aws_s3_bucket_versioning")
    block = {"versioning_configuration": [{"state": '"Enabled"', "__is_block__": True}]}
    assert list(faults(block, schema, "x")) == [
        "x.versioning_configuration: no argument 'state'",
        "x.versioning_configuration: 'status' is required",
        "x: 'bucket' is required",
    ]


@pytest.mark.usefixtures("schema_is_here")
def test_a_value_of_another_type_is_found() -> None:
    schema = read_schema("aws_cloudwatch_metric_alarm")
    alarm = {"alarm_name": '"a"', "comparison_operator": '"b"', "evaluation_periods": '"two"'}
    alarm |= {"actions_enabled": '"perhaps"', "threshold": True, "period": '"60"', "namespace": []}
    assert list(faults(alarm, schema, "x")) == [
        "x: 'actions_enabled' is \"perhaps\", which is no boolean | cdktf.IResolvable",
        "x: 'evaluation_periods' is \"two\", which is no number",
        "x: 'namespace' is [], which is no string",
        "x: 'threshold' is True, which is no number",
    ]


def named(kind: str, name: str, module: str) -> dict[str, Any]:
    """One resource of a module."""
    place = f"modules/{module}/main.tf: {kind}.{name}"
    (body,) = (body for _, at, body in resources() if at == place)
    return body


@pytest.mark.parametrize(
    ("status", "reason", "action"),
    [
        ("Host EC2 (instance i-0123456789abcdef0) terminated.", "", "RETRY"),
        ("Essential container in task exited", "OutOfMemoryError: Container killed", "EXIT"),
        ("Essential container in task exited", "", "EXIT"),
    ],
)
def test_a_job_is_tried_again_only_when_its_machine_was_taken(
    status: str, reason: str, action: str
) -> None:
    """As AWS Batch does it: the first rule whose patterns all fit decides."""
    (strategy,) = named("aws_batch_job_definition", "this", "training")["retry_strategy"]
    told = {"on_status_reason": status, "on_reason": reason}
    decided = next(
        rule["action"].strip('"')
        for rule in strategy["evaluate_on_exit"]
        if all(fnmatchcase(told[k], rule[k].strip('"')) for k in told.keys() & rule.keys())
    )
    assert decided == action
    assert strategy["attempts"] > 1


def test_private_subnets_reach_s3_by_the_gateway_and_nothing_by_a_nat() -> None:
    kinds = {kind for kind, _, _ in resources()}
    assert not kinds & {"aws_nat_gateway", "aws_instance", "aws_ec2_transit_gateway"}
    gateway = named("aws_vpc_endpoint", "s3", "network")
    assert gateway["vpc_endpoint_type"] == '"Gateway"'
    assert gateway["route_table_ids"] == ["${aws_route_table.private.id}"]
    assert "route" not in named("aws_route_table", "private", "network")
    association = named("aws_route_table_association", "private", "network")
    assert association["route_table_id"] == "${aws_route_table.private.id}"
    text = (TERRAFORM / "modules" / "network" / "main.tf").read_text()
    (listed,) = re.findall(r"interfaces = toset\((\[.*\])\)", text)
    # What starts a task in a subnet without internet: its image and its log.
    assert {"ecr.api", "ecr.dkr", "logs"} <= set(json.loads(listed))


def test_the_budget_counts_what_has_the_tag_that_everything_has() -> None:
    (filtered,) = named("aws_budgets_budget", "month", "observability")["cost_filter"]
    # `$${` would be an escape: a dollar and a brace as they stand.
    assert filtered["values"] == ['${format("user:Project$%s", var.project)}']
    assert "Project     = var.name" in (TERRAFORM / "modules/naming/outputs.tf").read_text()
    unspread = [
        at
        for kind, at, body in resources()
        if kind == "aws_ecs_service" and body.get("propagate_tags") != '"SERVICE"'
    ]
    assert unspread == []


def test_the_pinned_provider_is_the_one_of_the_schema() -> None:
    pins = {
        version
        for path in TERRAFORM.glob("**/main.tf")
        for version in re.findall(r'"hashicorp/aws", version = "([^"]+)"', path.read_text())
    }
    assert pins == {"6.25.0"}
    if SCHEMA.is_dir():
        assert "/hashicorp/aws/6.25.0/" in (SCHEMA / "s3-bucket" / "index.d.ts").read_text()
