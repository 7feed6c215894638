"""The spec explains itself: as YAML with a comment on each key, as a JSON schema, as a short file to begin with, and as
docs/keys.md, the page of every key with what it takes, its default and what it means (`make keys`)."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator

import yaml
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue

from data_specs.source import Source
from data_specs.spec import SECTIONS, Spec, known_keys

WIDTH = 120
NEW = """\
# A spec of your own. `dnd spec` prints every key with what it means; `dnd presets` lists what `base` may be, or name
# another YAML file: its keys lie below those written here. Addresses of sources are relative to where `dnd` is started,
# all others to ROOT.
base: demo
name: mine
render:
  sources:
    - {kind: pdf, uri: my_pdfs}  # a folder, a tar or one file; s3:// and all that fsspec reads as well
    # - {kind: text, uri: my_texts}  # a folder of .jsonl or .parquet with a text in each line or row
"""
HEAD = """# All keys of a spec

Made from the models by `make keys`. Keys are written below one another in YAML and joined by dots for `--set`:
`--set train.micro_batch_size=8`, `--set render.sources.0.max_documents=80`. `dnd spec SPEC` prints a spec with these
words, `dnd spec --new` begins one, `dnd spec --schema` is for editors. `base:` names a preset or another file, whose
keys lie below those of this one. Addresses of sources are relative to where `dnd` is started, all others to ROOT.
"""
BOUNDS = (
    ("minimum", "from {}"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "to {}"),
    ("exclusiveMaximum", "below {}"),
)


def commented(spec: Spec) -> str:
    """Return a spec as YAML, each key with its description behind it."""
    about = (
        f"# {spec.name}: all keys of a spec with their values; put what differs into a file of its own below `base:`."
    )
    return "\n".join([about, *_lines(spec, "")]) + "\n"


def keys_of(name: str) -> list[str]:
    """Return the dotted keys of a section of the spec, one level; of a key that is no section, the key itself."""
    return [f"{name}.{key}" for key in known_keys(name.split("."))] or [name]


def schema() -> JsonSchemaValue:
    """Return the JSON schema of spec files, for editors: all keys are optional where `base:` names another spec."""
    tree = Spec.model_json_schema()
    tree["properties"] = {"base": {"type": "string", "description": "a preset or a file below this one"}} | tree[
        "properties"
    ]
    tree["required"] = []
    return tree


def _lines(model: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None and isinstance(model, Spec) and name in SECTIONS:
            continue
        about = field.description or _about_model(value)
        if isinstance(value, BaseModel):
            yield from _commented_line(f"{indent}{name}:", about)
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], BaseModel):
            yield from _commented_line(f"{indent}{name}:", about)
            for entry in value:
                first, *rest = _lines(entry, indent + "    ")
                yield f"{indent}  - {first.strip()}"
                yield from rest
        else:
            yield from _commented_line(f"{indent}{name}: {_value(model, name)}", about)


def _about_model(value: object) -> str:
    """First sentence of a section's own documentation."""
    document = type(value).__doc__ if isinstance(value, BaseModel) else None
    return _sentence(document or "").rstrip(".")


def _value(model: BaseModel, name: str) -> str:
    value = model.model_dump(mode="json", include={name})[name]
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    )


def _commented_line(line: str, about: str) -> Iterator[str]:
    """Yield the line with its comment behind it, or above it where it would be too long."""
    if not about or len(line) + len(about) + 4 <= WIDTH:
        yield f"{line}  # {about}" if about else line
        return
    indent = line[: len(line) - len(line.lstrip())]
    yield from (f"{indent}# {text}" for text in textwrap.wrap(about, WIDTH - len(indent) - 2))
    yield line


# ---- docs/keys.md --------------------------------------------------------------------------------------------------
def reference() -> str:
    """Write the page as Markdown: a heading for each section of the spec and within it, and for each kind of source."""
    tree = schema()
    sections = tree["$defs"]
    lines = [HEAD, "## The whole", *_table(tree["properties"], sections)]
    for name, about in _sections(tree["properties"], sections, ""):
        lines += [f"\n## {name}", _sentence(about.get("description", "")), *_table(about["properties"], sections)]
        if name == "render":
            for kind, source in sorted(Source.kinds.items()):
                if not source.__module__.startswith("data_specs."):
                    continue  # of a user's own
                described = source.model_json_schema()
                lines += [f"\n## A source of kind {kind}", _sentence(described.get("description", ""))]
                lines += _table(described["properties"], sections)
    return "\n".join(lines) + "\n"


def _sections(
    properties: JsonSchemaValue, sections: JsonSchemaValue, prefix: str
) -> Iterator[tuple[str, JsonSchemaValue]]:
    """(dotted name, schema) of each section, those within a section behind it."""
    for key, about in properties.items():
        name = _section_of(about)
        if name and name != "Source":
            yield f"{prefix}{key}", sections[name]
            yield from _sections(sections[name]["properties"], sections, f"{prefix}{key}.")


def _section_of(about: JsonSchemaValue) -> str:
    """Return the name of the section that a key holds, one of them or a list; empty for plain values."""
    for one in (about, about.get("items", {}), *about.get("anyOf", ()), *about.get("allOf", ())):
        if "$ref" in one:
            return str(one["$ref"]).rpartition("/")[2]
    return ""


def _table(properties: JsonSchemaValue, sections: JsonSchemaValue) -> Iterator[str]:
    yield "\n| key | takes | default | meaning |\n| --- | --- | --- | --- |"
    for key, about in properties.items():
        section = _section_of(about)
        means = about.get("description") or sections.get(section, {}).get("description", "")
        default = "" if section or "default" not in about else f"`{json.dumps(about['default'], ensure_ascii=False)}`"
        cells = (f"`{key}`", _takes(about), default, _sentence(means))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _takes(about: JsonSchemaValue) -> str:
    """Describe in words what a key takes."""
    if "anyOf" in about:
        return " or ".join(_takes(one) for one in about["anyOf"])
    if "$ref" in about:
        return "keys below" if not about["$ref"].endswith("/Source") else "a source"
    if "enum" in about or "const" in about:
        return ", ".join(f"`{value}`" for value in about.get("enum", [about.get("const")]))
    if "prefixItems" in about:
        return f"{len(about['prefixItems'])} values: {_takes(about['prefixItems'][0])}"
    if about.get("type") == "array":
        return f"list of {_takes(about['items'])}"
    bounds = " ".join(words.format(about[bound]) for bound, words in BOUNDS if bound in about)
    return f"{about.get('type', 'a value')} {bounds}".strip().replace("object", "mapping")


def _sentence(text: str) -> str:
    """Return the first paragraph, in one line."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


if __name__ == "__main__":
    sys.stdout.write(reference())
