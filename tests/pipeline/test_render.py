"""Units are rendered alike every time, and nothing a document does harms its neighbours."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from types import MappingProxyType

import pytest

from data_specs import storage
from data_specs.receipts import commit
from data_specs.records import Dropped, InputRead, Outcome, Reason, Sample
from data_specs.sections import Limits
from data_specs.sources import PdfSource, TextSource
from data_specs.sources.planning import cut
from data_specs.spec import Spec, load_spec
from pipeline import render
from pipeline.isolate import Child
from pipeline.render import Renderer

TINY = Path(__file__).parent.parent / "tiny.yaml"
LARGER = ["shape.image_size=64", "tokenizer.channel_multipliers=[1,1,1,1,1]"]


def pdf_spec(folder: Path, **limits: float) -> Spec:
    """The tiny spec over a folder of PDFs."""
    sources = json.dumps([{"kind": "pdf", "uri": str(folder)}])
    overrides = [f"render.sources={sources}", *(f"render.limits.{k}={v}" for k, v in limits.items())]
    return load_spec(TINY, [*overrides, "render.val_share=0", "render.documents_per_unit=1000"])


def render_all(spec: Spec) -> list[Outcome]:
    """What the units of a spec's sources give."""
    renderer = Renderer(spec)
    try:
        return [o for _, unit in cut(spec.render, spec.render.sources) for o in renderer.render(unit)]
    finally:
        renderer.close()


@pytest.fixture
def typeset(tmp_path: Path) -> Path:
    """A folder with two PDFs typeset from docstrings."""
    source = load_spec(TINY, ["render.sources.1.documents=2"]).render.sources[1]
    return Path(source.prepare(str(tmp_path / "inputs")).address)


def test_a_unit_gives_equal_bytes_every_time(typeset: Path, tmp_path: Path) -> None:
    spec = pdf_spec(typeset)
    receipts = [commit(str(tmp_path / name), "d" * 64, 0, render_all(spec)) for name in ("a", "b")]
    assert receipts[0].written > 0 and receipts[0].shard == receipts[1].shard and receipts[0].read


def test_json_has_the_text_under_each_crop(typeset: Path) -> None:
    samples = [o for o in render_all(pdf_spec(typeset)) if isinstance(o, Sample)]
    about = [json.loads(sample.fields["json"]) for sample in samples]
    assert any(a["words"] for a in about)
    for a in about:
        assert a["text"] == " ".join(word for word, cut in zip(a["words"], a["clipped"], strict=True) if not cut)
        assert all(0 <= side <= 32 for box in a["boxes"] for side in box)
        assert a["engine"].startswith("PyMuPDF") and a["source"].endswith(".pdf")


@pytest.mark.system
def test_every_bad_pdf_is_accounted_for(
    shared: Path, typeset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "RETRY_FACTOR", 1.0)  # what is over the limit is so four times as well, for longer
    folder = tmp_path / "mixed"
    folder.mkdir()
    bad = sorted((shared / "data/pdf/bad").glob("*.pdf"))
    for path in [*bad, *typeset.glob("*.pdf")]:
        (folder / path.name).symlink_to(path)
    outcomes = render_all(pdf_spec(folder, cpu_seconds=1, memory_bytes=800_000_000))
    alone = [o for o in render_all(pdf_spec(typeset)) if isinstance(o, Sample)]
    seen = {o.source for o in outcomes if isinstance(o, Dropped)}
    seen |= {json.loads(o.fields["json"])["source"] for o in outcomes if isinstance(o, Sample)}
    assert {path.name for path in bad} <= seen
    good = [o for o in outcomes if isinstance(o, Sample) and o.key.startswith("typeset")]
    assert good == alone
    reasons = {o.source: o.reason for o in outcomes if isinstance(o, Dropped)}
    assert reasons["password-open.pdf"] == Reason.ENCRYPTED
    assert reasons["made-html.pdf"] == Reason.NOT_A_PDF
    assert "made-form-bomb.pdf" in reasons


def test_hard_passages_do_not_break_rendering(shared: Path) -> None:
    source = {"kind": "text", "uri": str(shared / "data/text/passages_hard.jsonl")}
    spec = load_spec(
        TINY, [f"render.sources={json.dumps([source])}", "render.val_share=0", "render.documents_per_unit=500", *LARGER]
    )
    outcomes = render_all(spec)
    assert sum(isinstance(o, Sample | Dropped) for o in outcomes) == 200
    assert sum(isinstance(o, Sample) for o in outcomes) > 20
    assert {o.reason for o in outcomes if isinstance(o, Dropped)} >= {"no text", "no font has all its characters"}


def test_a_broken_line_is_a_counted_reject(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text('{"id": "a", "text": "one two"}\n{broken\n{"id": "b"}\n')
    spec = load_spec(TINY, [f'render.sources=[{{kind: text, uri: "{path}"}}]', "render.val_share=0"])
    outcomes = render_all(spec)
    assert [type(o) for o in outcomes] == [Sample, Dropped, Dropped, InputRead]
    assert isinstance(outcomes[1], Dropped) and outcomes[1].reason == Reason.BROKEN_ROW
    assert outcomes[1].source.startswith("passages.jsonl#")


def test_an_id_that_comes_twice_gives_two_samples_with_keys_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n{"id": "a", "text": "three"}\n')
    spec = load_spec(TINY, [f'render.sources=[{{kind: text, uri: "{path}"}}]', "render.val_share=0"])
    first, second, _ = render_all(spec)
    assert isinstance(first, Sample) and isinstance(second, Sample) and first.key == "a" != second.key
    assert [json.loads(s.fields["json"])["text"] for s in (first, second)] == ["one", "three"]


def test_a_file_that_changed_since_planning_fails_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "passages.jsonl"
    path.write_text('{"id": "a", "text": "one two"}\n')
    spec = load_spec(TINY, [f'render.sources=[{{kind: text, uri: "{path}"}}]'])
    [(_, unit)] = cut(spec.render, spec.render.sources)
    path.write_text('{"id": "a", "text": "three four"}\n')
    with pytest.raises(ValueError, match="is not the file that was planned"):
        list(Renderer(spec).render(unit))


def test_empty_sources_are_refused_by_name(tmp_path: Path) -> None:
    for source in (PdfSource(kind="pdf", uri=str(tmp_path)), TextSource(kind="text", uri=str(tmp_path / "no.jsonl"))):
        with pytest.raises(ValueError, match=str(tmp_path)):
            list(source.documents({}))


def die() -> None:
    """A renderer that kills itself."""
    os.kill(os.getpid(), signal.SIGSEGV)


def spin() -> None:
    """A renderer that never ends."""
    while True:
        pass


def greedy() -> int:
    """A renderer that eats memory."""
    return len(bytearray(1 << 32))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("die", (Reason.CRASH, "SIGSEGV")),
        ("spin", (Reason.CPU_TIME, "used more than 1 s of CPU")),
        ("greedy", (Reason.MEMORY, "")),
    ],
)
def test_children_that_crash_hang_or_eat_memory_are_named(
    function: str, reason: tuple[Reason, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    child = Child(f"test_render:{function}", Limits(cpu_seconds=1, memory_bytes=1 << 28))
    answer = child.call()
    assert (answer.reason, answer.detail) == reason and answer.environmental
    child.close()


def test_a_child_that_died_between_calls_is_replaced_and_leaves_no_thread() -> None:
    child = Child("os:getpid", Limits())
    before = set(threading.enumerate())
    first = child.call().value
    [writer] = set(threading.enumerate()) - before
    os.kill(first, signal.SIGKILL)
    assert child.process and child.process.wait() == -signal.SIGKILL
    assert child.call().value not in (first, None)
    writer.join(60)
    assert not writer.is_alive()
    child.close()


def test_a_call_that_cannot_be_sent_is_an_error_and_not_waited_for() -> None:
    child = Child("os:getpid", Limits())
    with pytest.raises(TypeError, match="cannot pickle"):
        child.call(MappingProxyType({}))
    child.close()


def test_local_copies_of_sources_are_listed_in_order(typeset: Path) -> None:
    names = [document.id for document in PdfSource(kind="pdf", uri=str(typeset)).documents({})]
    assert names == sorted(names) and len(names) == 2
    assert storage.exists(str(typeset / f"{names[0]}.pdf"))
