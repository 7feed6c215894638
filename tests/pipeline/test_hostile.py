"""Hostile and broken documents: no hole, no hang, offered = written + filtered + rejected, and neighbours unharmed."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hostile_pdfs
import psutil
import pytest

from data_specs.mupdf import pymupdf
from data_specs.receipts import commit
from data_specs.records import Dropped, InputRead, Outcome, RawDocument, Reason, Receipt, Sample, SampleInfo
from data_specs.sections import PageStyle
from data_specs.source import Source
from data_specs.sources.planning import cut
from data_specs.spec import Spec, load_spec
from pipeline import render
from pipeline.render import Renderer
from pipeline.renderers import pages
from pipeline.renderers.mupdf import open_pdf as open_with_mupdf
from pipeline.renderers.words import Page, ReadPage

TINY = Path(__file__).parent.parent / "tiny.yaml"
LIMITS = ["render.limits.cpu_seconds=1", "render.limits.memory_bytes=500000000"]
LIMITS += ["render.pages.max_pages=3", "render.filters.min_ink=0"]


def spec_of(folder: Path, *more: str) -> Spec:
    """The tiny spec over a folder of PDFs, in one unit, with tight limits."""
    sources = json.dumps([{"kind": "pdf", "uri": str(folder)}])
    return load_spec(
        TINY, [f"render.sources={sources}", "render.val_share=0", "render.documents_per_unit=10000", *LIMITS, *more]
    )


def write_all(folder: Path, documents: Iterable[tuple[str, bytes]]) -> Path:
    """Writes documents as files NAME.pdf."""
    folder.mkdir()
    for name, data in documents:
        (folder / f"{name}.pdf").write_bytes(data)
    return folder


def render_all(spec: Spec) -> list[Outcome]:
    """What the spec's units give."""
    renderer = Renderer(spec)
    try:
        made = (o for _, unit in cut(spec.render, spec.render.sources) for o in renderer.render(unit))
        return [o for o in made if not isinstance(o, InputRead)]
    finally:
        renderer.close()


def source_of(outcome: Outcome) -> str:
    """File name of the document an outcome comes from."""
    assert not isinstance(outcome, InputRead)
    return outcome.source if isinstance(outcome, Dropped) else str(json.loads(outcome.fields["json"])["source"])


def hold(outcomes: list[Outcome], folder: Path, root: Path) -> Receipt:
    """Every document has an outcome, every drop a reason in one line, every key is its own; the receipt adds up."""
    assert {source_of(o) for o in outcomes} == {path.name for path in folder.iterdir()}
    assert all("\n" not in o.detail for o in outcomes if isinstance(o, Dropped))
    return commit(str(root), "d" * 64, 0, outcomes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """The hostile documents made here, and what rendering gives."""
    folder = write_all(tmp_path_factory.mktemp("hostile") / "pdfs", hostile_pdfs.made().items())
    return folder, render_all(spec_of(folder))


def test_hostile_documents_are_accounted_for(made: tuple[Path, list[Outcome]], tmp_path: Path) -> None:
    folder, outcomes = made
    hold(outcomes, folder, tmp_path)
    reasons = {o.source.removesuffix(".pdf"): o.reason for o in outcomes if isinstance(o, Dropped)}
    assert {"box-of-10^6-points", "page-tree-cycle", "encrypted", "no-page"} <= reasons.keys()
    assert reasons["box-of-10^6-points"] == Reason.TOO_LARGE
    assert reasons["encrypted"] == Reason.ENCRYPTED


def test_what_is_only_odd_is_rendered(made: tuple[Path, list[Outcome]]) -> None:
    written = Counter(source_of(o).removesuffix(".pdf") for o in made[1] if isinstance(o, Sample))
    for name in ("javascript", "name\nwith newline", "..%2f..%2fetc-passwd", "box-backwards", "10^6-pages"):
        assert written[name], name
    assert written["10^6-pages"] == 9, "three crops of each of max_pages pages"
    assert all("/" not in o.key and "\n" not in o.key for o in made[1] if isinstance(o, (Sample, Dropped)))


@pytest.mark.long
def test_bombs_are_accounted_for(tmp_path: Path) -> None:
    folder = write_all(tmp_path / "pdfs", (hostile_pdfs.bombs() | {"harmless": hostile_pdfs.page()}).items())
    outcomes = render_all(spec_of(folder))
    hold(outcomes, folder, tmp_path / "set")
    reasons = {o.source.removesuffix(".pdf"): o.reason for o in outcomes if isinstance(o, Dropped)}
    assert {"forms-of-forms", "bomb-in-contents"} <= reasons.keys()
    assert "harmless.pdf" in {source_of(o) for o in outcomes if isinstance(o, Sample)}


def test_fuzzed_documents_are_accounted_for(shared: Path, tmp_path: Path) -> None:
    fuzz(shared, tmp_path, 50)


@pytest.mark.long
def test_a_thousand_fuzzed_documents_are_accounted_for(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    receipt = fuzz(shared, tmp_path, 1000)
    reasons = Counter(reject.reason for reject in receipt.rejected)
    with capsys.disabled():
        print(f"\nfuzz: {receipt.offered} offered, {receipt.written} written, rejected: {dict(reasons)}")


@pytest.mark.long
def test_memory_stays_flat_over_two_thousand_documents(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 good PDFs 50 times over: what worker and child hold after 400 documents is what they hold after 2,000."""
    good = sorted((shared / "data/pdf/good").glob("*.pdf"))
    links = ((f"{number:04d}", good[number % len(good)]) for number in range(2000))
    folder = tmp_path / "pdfs"
    folder.mkdir()
    for name, path in links:
        (folder / f"{name}.pdf").symlink_to(path)
    spec = spec_of(folder, "render.limits.cpu_seconds=20", "render.limits.memory_bytes=2000000000")
    renderer, held, seen = Renderer(spec), list[tuple[float, float]](), set[str]()
    for _, unit in cut(spec.render, spec.render.sources):
        for outcome in renderer.render(unit):
            seen.update([] if isinstance(outcome, InputRead) else [source_of(outcome)])
            if len(seen) > 400 * (len(held) + 1):
                assert renderer.child.process
                processes = (psutil.Process(), psutil.Process(renderer.child.process.pid))
                held.append(tuple(process.memory_info().rss / 2**20 for process in processes))  # type: ignore[arg-type]
    renderer.close()
    with capsys.disabled():
        print(f"\nMiB of worker and child after 400, 800 … documents: {[(round(a), round(b)) for a, b in held]}")
    assert len(held) == 4
    for process in range(2):
        assert held[-1][process] < 1.1 * held[0][process], held


def fuzz(shared: Path, tmp_path: Path, number: int) -> Receipt:
    """Renders so many broken variants of the good PDFs and checks the accounts."""
    folder = write_all(tmp_path / "fuzz", hostile_pdfs.broken(shared / "data/pdf/good", number))
    outcomes = render_all(spec_of(folder, "render.limits.cpu_seconds=5"))
    receipt = hold(outcomes, folder, tmp_path / "set")
    assert receipt.written and receipt.rejected
    return receipt


def three_pages() -> bytes:
    """A document of three pages."""
    with pymupdf.open(stream=hostile_pdfs.page(), filetype="pdf") as document:
        document.copy_page(0)
        document.copy_page(0)
        return document.tobytes()


def dies_on_mupdf(spec: Spec, source: Source, document: RawDocument, ended: pages.Ended) -> list[Sample | Dropped]:
    """A renderer that kills itself on one document with MuPDF, on another with every engine, dies of a third when it
    was not the first document of its process, and of the second page of a fourth with MuPDF."""
    if document.id == "dies" or (document.id == "dies-on-mupdf" and pages.OPENING not in ended):
        os.kill(os.getpid(), signal.SIGSEGV)
    if document.id == "dies-second" and served:
        os.kill(os.getpid(), signal.SIGABRT)
    served.append(document.id)
    if document.id == "dies-on-a-page":
        pages.ENGINES["mupdf"].open_pdf = dies_on_second_page  # type: ignore[assignment]
    return render.render_document(spec, source, document, ended)


@contextmanager
def dies_on_second_page(data: bytes) -> Iterator[tuple[int, ReadPage]]:
    """MuPDF, if it crashed on the second page."""

    def read(number: int, style: PageStyle) -> Page:
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        return read_page(number, style)

    with open_with_mupdf(data) as (num_pages, read_page):
        yield num_pages, read


served: list[str] = []


@pytest.mark.system
def test_a_suspect_runs_alone_then_on_the_second_engine_then_is_quarantined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "dies", "dies-on-mupdf", "dies-second", "z")
    documents = dict.fromkeys(names, hostile_pdfs.page()) | {"dies-on-a-page": three_pages()}
    folder = write_all(tmp_path / "pdfs", documents.items())
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    monkeypatch.setattr(render, "FUNCTION", "test_hostile:dies_on_mupdf")
    outcomes = render_all(spec_of(folder))
    hold(outcomes, folder, tmp_path / "set")
    [quarantined] = [o for o in outcomes if isinstance(o, Dropped)]
    assert quarantined == ("dies", "dies.pdf", Reason.CRASH, "SIGSEGV")
    infos = [SampleInfo.parse(o.fields["json"], o.key) for o in outcomes if isinstance(o, Sample)]
    engines = {info.source: info.engine for info in infos}
    assert engines["dies-on-mupdf.pdf"].startswith("pypdfium2 ")
    assert all(engines[f"{name}.pdf"].startswith("PyMuPDF ") for name in ("a", "dies-second", "z"))
    by_page = {info.page: info.engine.split()[0] for info in infos if info.source == "dies-on-a-page.pdf"}
    assert by_page == {0: "PyMuPDF", 1: "pypdfium2", 2: "PyMuPDF"}
