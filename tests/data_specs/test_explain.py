"""The spec explains itself: what is printed is read back, every key has its words, mistakes name what was meant."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from data_specs import explain
from data_specs.source import Source
from data_specs.spec import load_spec, parse_spec, presets

PAGE = Path(__file__).resolve().parents[2] / "docs/keys.md"


@pytest.mark.parametrize("name", presets())
def test_the_commented_spec_reads_back_as_itself(name: str) -> None:
    text = explain.commented(load_spec(name))
    assert parse_spec(text, "printed") == load_spec(name)
    assert max(map(len, text.splitlines())) <= 240  # lists of sources and colours alone are longer than 120


def test_presets_and_the_new_file_keep_the_schema() -> None:
    schema = explain.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in presets():
        jsonschema.validate(yaml.safe_load(load_spec(name).to_yaml()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"train": {"no_such_key": 1}}, schema)


def test_the_new_file_is_a_spec(tmp_path: object) -> None:
    path = f"{tmp_path}/new.yaml"
    with open(path, "w") as file:
        file.write(explain.NEW)
    spec = load_spec(path)
    assert spec.name == "mine" and spec.render.sources[0].kind == "pdf"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.micro_batch=8", "; did you mean micro_batch_size?"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("render.sources.0.passges=8", "; did you mean passages?"),
    ],
)
def test_mistakes_of_set_name_set(override: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        load_spec("demo", [override])
    assert str(error.value).endswith(f" (--set {override})") and said in str(error.value)


def test_a_mistake_in_a_file_names_file_and_key() -> None:
    tree = load_spec("demo").tree() | {"trian": {}}
    with pytest.raises(ValueError, match=r"^mine: trian: unknown key; .*; did you mean train\?"):
        parse_spec(yaml.safe_dump(tree), "mine")


@pytest.mark.parametrize(
    ("section", "key"), [("render.sources", "kind"), ("train.codes", "manifest"), ("sample.given", "hole")]
)
def test_the_keys_of_a_list_are_those_of_its_entries(section: str, key: str) -> None:
    assert f"{section}.{key}" in explain.keys_of(section)


def test_every_key_is_described() -> None:
    lines = explain.commented(load_spec("demo", ["render.sources=[{kind: pdf, uri: x}]"])).splitlines()
    pairs = zip(lines[1:], lines, strict=False)
    bare = [line.strip() for line, above in pairs if "#" not in line and not above.lstrip().startswith("#")]
    assert set(bare) <= {"licence: null", "max_documents: null", "- kind: pdf", "uri: x"}, bare


# ---- docs/keys.md --------------------------------------------------------------------------------------------------
def test_the_page_is_what_the_models_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == explain.reference(), "write it anew: make keys"


def test_every_key_is_described_and_every_kind_of_source_has_its_section() -> None:
    text = explain.reference()
    assert [line for line in text.splitlines() if line.startswith("| `") and line.endswith("|  |")] == []
    for kind in ("arxiv", "pdf", "text", "images"):
        assert kind in Source.kinds and f"## A source of kind {kind}\n" in text
    assert "| `micro_batch_size` | integer from 1 or null | `null` |" in text
