"""Hooks of the documentation site: the README as its first page, pages made from the code, links that leave docs/."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from data_specs import load_spec
from data_specs.explain import commented

REPOSITORY = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)?([\w./-]+)(#[\w-]*)?\)")
SPEC = """# All keys of a spec

The whole of a preset, each key with what it means, as `dnd spec {preset}` prints it. `dnd spec --new` begins a file of
your own, `dnd spec --schema` is for editors.

```yaml
{text}```
"""
API = """# From Python

::: data_specs.reader.open_shards
::: data_specs.spec.load_spec
::: train.generate
::: train.sampling.sample_codes
::: train.model
::: tokenize_jobs.rqvae
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    pages = {
        "index.md": (REPOSITORY / "README.md").read_text(encoding="utf-8").replace("](docs/", "]("),
        "spec.md": spec_page("imagenet_16x16x2"),
        "api.md": API,
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links that leave the documents: to the README's page, or, where the file is there, its name alone."""
    return LINK.sub(_link, markdown)


def spec_page(preset: str) -> str:
    """Return the documentation page of all keys of a spec."""
    return SPEC.format(preset=preset, text=commented(load_spec(preset)))


def _link(link: re.Match[str]) -> str:
    text, path, anchor = link.groups()
    if path == "README.md":
        return f"[{text}](index.md{anchor or ''})"
    inside = (REPOSITORY / "docs" / path).exists() or path in ("index.md", "spec.md", "api.md")
    return text if not inside and (REPOSITORY / path).exists() else link[0]
