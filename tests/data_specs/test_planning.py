"""All sources together: validation is never empty unawares, and a new kind of source is one class."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from raw_documents import write_tar

from data_specs import storage
from data_specs.records import Document, SourceUnit, Span
from data_specs.sections import Render
from data_specs.source import Source
from data_specs.sources import ImageSource, TextSource
from data_specs.sources.listed import ListedSource, NotTaken
from data_specs.sources.planning import list_units, read_units
from data_specs.sources.reading import read_unit
from data_specs.spec import load_spec, parse_spec


def ids(sources: list[Source], folder: Path, **render: float) -> dict[str, list[str]]:
    """The ids of a plan's documents by split; its units are numbered from 0."""
    folder.mkdir(exist_ok=True)
    files = list_units(Render(sources=sources, **render), sources, folder)  # type: ignore[arg-type]
    units = {split: list(read_units(path)) for split, path in files.items()}
    assert all([u.unit for u in of_split] == list(range(len(of_split))) for of_split in units.values())
    return {split: [d.id for unit in of_split for d in unit.documents] for split, of_split in units.items()}


def texts(folder: Path, number: int) -> TextSource:
    folder.mkdir(exist_ok=True)
    lines = (json.dumps({"id": f"t{i}", "text": "x"}) for i in range(number))
    (folder / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return TextSource(uri=str(folder))


# ---- validation ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("number", "per_unit"), [(2, 64), (2, 1), (7, 3), (7, 1), (7, 7)])
def test_validation_gets_a_document_where_the_hash_gives_it_none(
    number: int, per_unit: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = texts(tmp_path / "texts", number)
    made = ids([source], tmp_path / "plan", val_share=1e-9, documents_per_unit=per_unit)
    assert len(made["val"]) == 1 and len(made["train"]) == number - 1
    assert {*made["train"], *made["val"]} == {f"t{i}" for i in range(number)}
    assert f"render.val_share 1e-09 gives no document to val, of {number}: one is taken for it" in caplog.text
    assert made == ids([source], tmp_path / "again", val_share=1e-9, documents_per_unit=per_unit)
    more = ids([source], tmp_path / "more", val_share=0.9, documents_per_unit=per_unit)
    assert made["val"][0] in more["val"], "the first that a larger share would give"


def test_one_document_is_refused_where_validation_needs_one(tmp_path: Path) -> None:
    source = texts(tmp_path / "texts", 1)
    with pytest.raises(ValueError, match=r"there is one document, and validation .* render\.val_share=0"):
        ids([source], tmp_path / "plan", val_share=1e-9)
    assert ids([source], tmp_path / "plan", val_share=0) == {"train": ["t0"], "val": []}


def test_sources_that_say_train_keep_their_documents(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "x.tar", [("a.jpg", b"A"), ("b.jpg", b"B")])
    images = ImageSource(uri=str(tmp_path / "x.tar"), classes="none", split="train")
    assert ids([images], tmp_path / "plan", val_share=1e-9) == {"train": ["a", "b"], "val": []}
    assert "no document is in val: every source says which split it is for" in caplog.text
    both = ids([images, texts(tmp_path / "texts", 2)], tmp_path / "plan", val_share=1e-9)
    assert len(both["val"]) == 1 and both["val"][0].startswith("t")


# ---- a new kind of source ------------------------------------------------------------------------------------------
class NoteSource(ListedSource):
    """Plain text files: what a new kind of source takes."""

    document_kind: ClassVar[Literal["text"]] = "text"

    kind: Literal["notes"] = "notes"

    def listing(self, classes: Mapping[str, int], not_taken: NotTaken) -> Iterator[Document]:
        for file in storage.list_files(self.uri):
            if file.uri.endswith(".txt"):
                yield Document(file.uri.rpartition("/")[2], Span(file))
            else:
                not_taken.add(file.uri)


@pytest.mark.slow
def test_a_new_kind_of_source_is_one_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from data_specs.records import parse_unit, unit_line
    from pipeline.render import Renderer

    (tmp_path / "notes").mkdir()
    for name, text in (("a.txt", "one two"), ("b.txt", "three"), ("c.md", "no")):
        (tmp_path / "notes" / name).write_text(text)
    tiny = Path(__file__).parent.parent / "tiny.yaml"
    sources = json.dumps([{"kind": "notes", "uri": str(tmp_path / "notes"), "licence": "CC0-1.0"}])
    spec = load_spec(tiny, [f"render.sources={sources}", "render.val_share=0"])
    assert parse_spec(spec.to_yaml(), "spec.yaml") == spec
    with pytest.raises(ValueError, match=r"render\.sources\.0\.url: unknown key; known here: kind, .*did you mean uri"):
        load_spec(tiny, ["render.sources=[{kind: notes, url: x}]"])
    assert spec.render
    [unit] = read_units(list_units(spec.render, [s.prepare("") for s in spec.render.sources], tmp_path)["train"])
    planned = parse_unit(unit_line(unit), "plan")
    assert planned == unit and isinstance(planned, SourceUnit) and isinstance(planned.source, NoteSource)
    assert [raw.data for raw in read_unit(planned, 100)] == [b"one two", b"three"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and "1 .md" in caplog.text
    renderer = Renderer(spec)
    try:
        keys = [getattr(outcome, "key", "") for outcome in renderer.render(planned)]
    finally:
        renderer.close()
    assert len([key for key in keys if key]) == 2
