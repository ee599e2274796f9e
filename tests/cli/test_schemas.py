"""Every command has a schema, every schema is strict, and what commands print fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemas
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

# Documents that others write: their fields are not ours to close.
FOREIGN = {"chat": {"usage"}}


def test_every_command_has_a_schema_and_no_schema_is_left_over():
    assert schemas.schema_names() == {*schemas.command_names(), schemas.ERROR}


@pytest.mark.parametrize("name", sorted(schemas.schema_names()))
def test_a_schema_is_valid_and_says_what_it_is_of(name):
    schema = schemas.schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["description"]
    if name != schemas.ERROR:
        assert schema["title"].startswith(f"ktops {name.replace('-', ' ')}")
        assert "--json" in schema["title"]


def objects(schema: Any, name: str = "") -> Iterator[tuple[str, dict]]:
    """Every subschema that describes an object, with the name of the property it is for."""
    if isinstance(schema, list):
        for item in schema:
            yield from objects(item, name)
    elif isinstance(schema, dict):
        if schema.get("type") == "object" or "properties" in schema:
            yield name, schema
        for key, value in schema.items():
            if key in ("properties", "$defs"):
                for child, subschema in value.items():
                    yield from objects(subschema, child)
            elif key not in ("const", "enum", "required"):
                yield from objects(value, name)


@pytest.mark.parametrize("name", sorted(schemas.schema_names()))
def test_our_objects_have_no_fields_that_the_schema_does_not_name(name):
    for of, found in objects(schemas.schema(name)):
        if of not in FOREIGN.get(name, ()):
            more = found.get("additionalProperties")
            assert more is False or isinstance(more, dict), f"{name}.json: {of!r} is open"


@pytest.mark.parametrize("name", sorted(schemas.schema_names()))
def test_every_document_carries_the_version(name):
    schema = schemas.schema(name)
    forms = schema.get("oneOf") or schema.get("anyOf") or [schema]
    for form in forms:
        if "$ref" in form:
            form = schema["$defs"][form["$ref"].rpartition("/")[2]]
        assert form["properties"]["schema_version"] == {"const": 1}
        assert "schema_version" in form["required"]


def test_a_field_too_many_is_noticed():
    document = {"schema_version": 1, "ktops": "0.1.0", "python": "3.12.0"}
    schemas.check("version", document)
    with pytest.raises(AssertionError, match="surprise"):
        schemas.check("version", document | {"surprise": 1})
    with pytest.raises(ValidationError):
        Draft202012Validator(schemas.schema("version")).validate({"schema_version": 1})


@pytest.mark.parametrize(
    ("args", "command"),
    [
        (["env", "--json"], "env"),
        (["--lang", "zh", "config", "show", "--json"], "config-show"),
        (["--version", "--json"], "version"),
        (["config", "--json"], None),
        (["--json"], None),
    ],
)
def test_the_command_of_a_command_line_is_found(args, command):
    assert schemas.command_of(args) == command


# The `ktops` fixture holds every document against its schema; here each command runs once.
@pytest.mark.parametrize(
    "args",
    [
        ["version"],
        ["--version"],
        ["env"],
        ["config", "show"],
        ["config", "get", "port"],
        ["config", "set", "cpu_infer", "4"],
        ["config", "set", "api_key", "sesame"],
        ["config", "unset", "cpu_infer"],
        ["config", "path"],
        ["completion", "zsh"],
        ["models"],
        ["models", "list"],
        ["models", "show", "r1-q4km"],
        ["models", "show", "demo"],
        ["models", "path", "demo"],
        ["plan", "demo"],
        ["plan", "r1-q4km", "--compare"],
        ["doctor", "--only", "cpu,mem,py"],
        ["doctor", "--list-checks"],
    ],
)
def test_a_command_prints_what_its_schema_says(ktops: Callable, args):
    ran = ktops(*args, "--json")
    assert schemas.documents(ran.stdout), ran.stderr
    assert ran.stderr == "" or args[0] in ("plan", "doctor")


def test_building_prints_what_its_schema_says(ktops, native_build):
    for args in (["build"], ["build", "--info"]):
        assert ktops(*args, "--json").document["schema_version"] == 1


def test_a_registered_model_prints_what_its_schema_says(ktops, work_dir: Path, monkeypatch):
    from ktops_engine.demo import demo_path

    monkeypatch.setenv("KTOPS_MODELS", str(work_dir / "models"))
    for args in (
        ["models", "add", "mine", str(demo_path())],
        ["models", "show", "mine"],
        ["models", "verify", "mine"],
        ["models", "verify", "mine"],
        ["models"],
        ["models", "remove", "mine"],
    ):
        ran = ktops(*args, "--json")
        assert ran.status == 0, ran.stdout
        assert "error" not in schemas.documents(ran.stdout)[-1]


@pytest.mark.parametrize(
    "args",
    [
        ["verison"],
        ["env", "--frob"],
        ["config", "get", "prot"],
        ["config", "get", "api_key"],
        ["config", "set", "port", "many"],
        ["completion", "tcsh"],
        ["models", "show", "r1-q4k"],
        ["models", "path", "r1-q4km"],
        ["models", "remove", "demo"],
        ["models", "add", "bad name", "/nowhere"],
        ["plan", "r1-q4k"],
        ["doctor", "--only", "frob"],
        ["doctor", "--model", "r1-q4k"],
        ["build", "--numa", "maybe"],
        ["download", "nowhere"],
        ["serve", "r1-q4k"],
        ["serve", "--port", "http"],
        ["serve", "--gguf-path", "absent.gguf", "--port", "0"],
        ["chat", "--url", "nonsense", "-p", "hi"],
        ["chat", "--url", "http://127.0.0.1:9", "-p", "hi"],
        ["top", "--url", "http://127.0.0.1:9"],
        ["top", "--interval", "no"],
    ],
)
def test_every_failure_is_an_error_document_with_a_hint_and_without_a_traceback(ktops, args):
    ran = ktops(*args, "--json")
    last = schemas.documents(ran.stdout)[-1]
    assert ran.status in (1, 2, 4)
    assert last["error"]["hint"]
    assert "Traceback" not in ran.stdout + ran.stderr


def test_a_broken_configuration_fails_every_command_that_reads_it_alike(ktops, work_dir):
    (work_dir / "ktops.toml").write_text("port = [\n")
    for args in (["config", "show"], ["models"], ["serve"], ["doctor"], ["top"], ["plan", "demo"]):
        ran = ktops(*args, "--json")
        assert ran.status == 2, args
        assert ran.document["error"]["code"] == "invalid-config"


def test_the_chat_document_is_the_reply_as_it_is(ktops):
    """Without an engine: the fields of a reply are those of the schema."""
    from dataclasses import asdict

    from ktops.chat.conversation import Reply

    reply = asdict(Reply("thought", "said", "stop", {"prompt_tokens": 3}))
    schemas.check("chat", {"schema_version": 1, "model": "demo", **reply})


def test_every_event_of_a_reading_fits(capsys):
    from ktops.monitor.readings import Readings
    from ktops.monitor.server_metrics import Sample
    from ktops.monitor.view import Lines
    from ktops.output import Mode, Output

    idle = Sample(
        0.0, "m", "ready", 0, 0, 0.0, 0, 0, 0, 0, 1, 0, {},
        {"stop": 0, "length": 0, "abort": 0, "error": 0},
    )  # fmt: skip
    Lines(Output(mode=Mode.JSON)).show(Readings(idle).add(idle))
    schemas.check_output(["top", "--json"], capsys.readouterr().out)
