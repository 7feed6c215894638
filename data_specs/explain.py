"""The spec explains itself: as YAML with a comment on each key, as a JSON schema, and as a short file to begin with."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

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


def commented(spec: Spec) -> str:
    """Return a spec as YAML, each key with its description behind it."""
    about = (
        f"# {spec.name}: all keys of a spec with their values; put what differs into a file of its own below `base:`."
    )
    return "\n".join([about, *_lines(spec, "")]) + "\n"


def keys_of(name: str) -> list[str]:
    """Return the dotted keys of a section of the spec, one level; of a key that is no section, the key itself."""
    return [f"{name}.{key}" for key in known_keys(name.split("."))] or [name]


def schema() -> dict[str, Any]:
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
    return " ".join((document or "").split("\n\n")[0].split()).rstrip(".")


def _value(model: BaseModel, name: str) -> str:
    value = model.model_dump(mode="json", include={name})[name]
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()
    )


def _commented_line(line: str, about: str) -> Iterator[str]:
    """The line with its comment behind it; one that is too long stands above."""
    if not about or len(line) + len(about) + 4 <= WIDTH:
        yield f"{line}  # {about}" if about else line
        return
    indent = line[: len(line) - len(line.lstrip())]
    yield from (f"{indent}# {part}" for part in textwrap.wrap(about, WIDTH - len(indent) - 2))
    yield line
