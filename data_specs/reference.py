"""docs/keys.md: every key of a spec with what it takes, its default and what it means, as its model says it.

`make keys` writes the page; a test holds it to the models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from data_specs.explain import schema
from data_specs.source import Source

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
    properties: dict[str, Any], sections: dict[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(dotted name, schema) of each section, those within a section behind it."""
    for key, about in properties.items():
        name = _section_of(about)
        if name and name != "Source":
            yield f"{prefix}{key}", sections[name]
            yield from _sections(sections[name]["properties"], sections, f"{prefix}{key}.")


def _section_of(about: dict[str, Any]) -> str:
    """The name of the section that a key holds, one of them or a list; empty for plain values."""
    for one in (about, about.get("items", {}), *about.get("anyOf", ()), *about.get("allOf", ())):
        if "$ref" in one:
            return str(one["$ref"]).rpartition("/")[2]
    return ""


def _table(properties: dict[str, Any], sections: dict[str, Any]) -> Iterator[str]:
    yield "\n| key | takes | default | meaning |\n| --- | --- | --- | --- |"
    for key, about in properties.items():
        section = _section_of(about)
        means = about.get("description") or sections.get(section, {}).get("description", "")
        default = "" if section or "default" not in about else f"`{json.dumps(about['default'], ensure_ascii=False)}`"
        cells = (f"`{key}`", _takes(about), default, _sentence(means))
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _takes(about: dict[str, Any]) -> str:
    """What a key takes, in words."""
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
    """The first paragraph, in one line."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


if __name__ == "__main__":
    sys.stdout.write(reference())
