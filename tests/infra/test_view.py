"""`dnd view`: what its tabs show and do, in a real browser; and who is answered."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium, serious_faults
from sets import render_here, text_spec, write_texts

from data_specs import open_shards, storage
from data_specs.manifest import merge
from data_specs.receipts import commit
from infra.view import neighbours, sets, studio
from infra.view.server import COOKIE, guarded, is_local, listen, refused
from infra.view.server import address as address_of
from infra.view.sets import macro
from pipeline.stages import UnitStage
from pipeline.workers import Workers
from tokenize_jobs.job import DECODE, TOKENIZE
from tokenize_jobs.networks import config_of as tokenizer_config
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import save_tokenizer
from train.model import DnDTransformer, config_of
from train.sample_job import SAMPLE
from train.sampling import FREE
from train.weights import import_transformer

SCRIPT = "<img src=x onerror=document.title='taken'>"


def run_here(stage: UnitStage, spec: object, root: str, **options: object) -> None:
    """A stage, unit after unit in this process."""
    for output in stage.outputs(spec, root, Workers(), **options):  # type: ignore[arg-type]
        work = output.setup()
        for unit in output.plan.units():
            commit(output.plan.set_uri, output.plan.digest, unit.unit, work(unit))
        merge(output.plan, stage.holds)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root with pictures, codes, models that have learned nothing, samples, and a training's log."""
    folder = tmp_path_factory.mktemp("view")
    write_texts(folder / "texts/a.jsonl", [f"text-{n}" for n in range(40)])
    write_texts(folder / f"texts/{SCRIPT}.jsonl", ["broken-1"])
    spec = text_spec(folder / "texts", "render.documents_per_unit=14", "tokenize.compute_batch=16")
    render_here(spec, folder / "root")
    torch.manual_seed(0)
    save_tokenizer(RQVAE(tokenizer_config(spec)), folder / "root/tokenizer")
    run_here(TOKENIZE, spec, str(folder / "root"))
    torch.save(DnDTransformer(config_of(spec)).state_dict(), folder / "model.pt")
    import_transformer(folder / "model.pt", folder / "root/transformer", config_of(spec))
    run_here(SAMPLE, spec, str(folder / "root"))
    run_here(DECODE, spec, str(folder / "root"), codes="samples/default/codes", out="samples/default")
    (folder / "root/transformer/metrics.jsonl").write_text('{"step": 1, "bits_per_code": 5.0}\n{"step": 2, "bits')
    return str(folder / "root")


@contextmanager
def served(root: str) -> Iterator[str]:
    """Where the command serves the page of a root."""
    words = [sys.executable, "-m", "infra.cli", "view", root, "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    said = server.stdout.readline()
    try:
        yield said.split()[1]
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def address(root: str) -> Iterator[str]:
    """Where the command serves the page."""
    with served(root) as where:
        yield where


def test_one_walks_through_samples_codes_rejects_neighbours_and_curves(address: str, root: str) -> None:
    asked: list[str] = []
    with chromium() as page:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        count = page.get_by_text(re.compile(r"^\d+ of \d+ samples"))
        count.wait_for()
        number = len(open_shards(f"{root}/images/train"))
        assert count.inner_text() == f"{number} of {number} samples, page 1 of {-(-number // 24)}"
        page.locator(".tiles button").nth(2).click()
        page.locator(".sample pre").wait_for()
        key = page.locator(".tiles button").nth(2).inner_text().strip()
        assert key in page.locator(".sample table").inner_text() and "CC-BY-4.0" in page.locator(".sample").inner_text()
        page.locator("table.codes").wait_for()
        assert page.locator(".figures figcaption", has_text="from 2 of 2 codes a position").count() == 1
        page.get_by_label("number input for Decoded").fill("1")
        page.get_by_label("number input for Decoded").press("Enter")
        page.locator(".figures figcaption", has_text="from 1 of 2 codes a position").wait_for()
        shown = [int(cell.inner_text()) for cell in page.locator("table.codes td").all()]
        place = next(n for n, item in enumerate(open_shards(f"{root}/codes/train")) if item["__key__"] == key)
        assert shown == open_shards(f"{root}/codes/train")[place]["codes"][0, ..., 0].ravel().tolist()
        page.get_by_label("Only where").fill("text like 'an %' and licence = 'CC-BY-4.0'")
        page.get_by_label("Only where").press("Enter")
        found = len(sets.chosen(sets.open_now(root, "images/train"), None, "text like 'an %'"))
        assert 0 < found < number
        page.get_by_text(f"{found} of {number} samples, page 1 of 1").wait_for()
        page.get_by_label("Only where").fill("no_column > 1")
        page.get_by_label("Only where").press("Enter")
        page.get_by_text("Referenced column").wait_for()
        page.get_by_role("tab", name="Left out").click()
        page.get_by_role("cell", name=f"{SCRIPT}.jsonl").wait_for()
        assert page.title() != "taken"
        page.get_by_role("tab", name="Nearest").click()
        press(page, "Search", page.locator(".pairs figcaption", has_text="difference").first)
        page.get_by_role("tab", name="Curves").click()
        page.get_by_text("training, 5 at last").wait_for()
        with open(f"{root}/transformer/metrics.jsonl", "a") as log:
            log.write('_per_code": 4.5}\n')
        page.get_by_text("training, 4.5 at last").wait_for()  # without a click: training goes on
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def press(page: Any, name: str, answer: Any) -> None:
    """Presses a button until its answer is shown, as a hand does, three times at most.

    Gradio's client closes the queue's stream behind the last event, and never hears of one that is answered in the
    milliseconds in which it does.
    """
    from playwright.sync_api import TimeoutError as Unanswered

    for _ in range(2):
        page.get_by_role("button", name=name).click()
        with suppress(Unanswered):
            answer.wait_for(timeout=20_000)
            return
    page.get_by_role("button", name=name).click()
    answer.wait_for()


def settles(page: Any) -> Callable[[], None]:
    """Waits until no answer is under way; five seconds at most, since one that was lost keeps a stream open."""
    streams = set[Any]()
    page.on("request", lambda request: streams.add(request) if "/queue/" in request.url else None)
    for name in ("requestfinished", "requestfailed"):
        page.on(name, lambda request: streams.discard(request))

    def settled() -> None:
        quiet = 0
        for _ in range(100):
            page.wait_for_timeout(50)
            quiet = 0 if streams else quiet + 1
            if quiet == 5:
                return

    return settled


def test_the_studio_draws_paints_a_hole_and_goes_on_with_a_line(address: str) -> None:
    with chromium() as page:
        settled = settles(page)
        page.goto(address)
        page.get_by_role("tab", name="Studio").click()
        settled()
        press(page, "Draw", page.locator(".tiles button", has_text="seed 0, 3"))
        page.locator(".tiles button", has_text="seed 0, 1").click()
        box = page.locator(".hole").bounding_box()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
        settled()
        page.mouse.down()
        page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
        page.mouse.up()
        page.wait_for_function("[...document.querySelectorAll('textarea, input')].some(i => i.value == '1, 1, 3, 3')")
        page.get_by_label("Seed").fill("7")
        settled()
        press(page, "Paint", page.locator(".tiles button", has_text="seed 7, 3"))
        page.get_by_label("Line of text").fill("an")
        settled()
        press(page, "Write this line", page.locator(".hole i").first)
        page.get_by_label("Line of text").fill("word " * 60)
        settled()
        press(page, "Write this line", page.get_by_text("the text cannot be drawn").first)


def test_a_root_on_s3_is_shown_and_drawn_from_as_well(root: str, s3_root: str) -> None:
    for file in storage.list_files(root):
        storage.create(storage.join(s3_root, file.uri.removeprefix(root + "/")), Path(file.uri))
    with served(s3_root) as where, chromium() as page:
        page.goto(where)
        page.get_by_text(re.compile(r"^\d+ of \d+ samples")).wait_for()
        page.get_by_label("Only where").fill("text like 'an %'")
        page.get_by_label("Only where").press("Enter")
        found = len(sets.chosen(sets.open_now(root, "images/train"), None, "text like 'an %'"))
        page.get_by_text(re.compile(rf"^{found} of \d+ samples, page 1 of 1")).wait_for()
        page.locator(".tiles button").first.click()
        page.locator("table.codes").wait_for()
        page.get_by_role("tab", name="Left out").click()
        page.get_by_role("cell", name=f"{SCRIPT}.jsonl").wait_for()
        page.get_by_role("tab", name="Nearest").click()
        press(page, "Search", page.locator(".pairs figcaption", has_text="difference").first)
        page.get_by_role("tab", name="Studio").click()
        press(page, "Draw", page.locator(".tiles button", has_text="seed 0, 3"))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
def test_the_page_is_for_everyone(address: str, width: int, scheme: str) -> None:
    with chromium(width, scheme) as page:
        page.goto(address)
        page.locator(".tiles button").first.click()
        page.locator("table.codes").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 60")
        assert dark == (scheme == "dark")
        assert serious_faults(page) == []


def test_an_emptied_number_counts_as_the_first(root: str) -> None:
    from infra.view.page import page

    handlers: dict[str, Any] = {str(found.name): found.fn for found in page(root).fns.values()}
    assert handlers["list_samples"]("images/train", "all", "", None)[0].endswith(" page 1 of 2")
    assert "figures wide" in handlers["draw"]("images/train", None)
    assert handlers["search"]("samples/default/images", None).count("<figure>") == 16
    assert handlers["take"]("codes/train", None)[0].codes.shape == (4, 4, 2)
    assert "seed 0, 0" in handlers["from_nothing"](0, 1, 1, 1, None)[1]


def test_a_set_that_shrinks_or_goes_while_it_is_shown_is_named(root: str, tmp_path: Path) -> None:
    from types import SimpleNamespace

    import gradio as gr

    from infra.view.page import page

    shutil.copytree(root, tmp_path / "root")
    handlers: dict[str, Any] = {str(found.name): found.fn for found in page(str(tmp_path / "root")).fns.values()}
    for path in (tmp_path / "root/images/train").glob("*.json"):
        path.unlink()
    chosen = "images/train", "all", "", 1, SimpleNamespace(index=0)
    for name, given in {"show_sample": chosen, "show_codes": ("images/train", 0, 1, 0)}.items():
        with pytest.raises(gr.Error, match="fewer samples than when they were listed"):
            handlers[name](*given)
    shutil.rmtree(tmp_path / "root/images")
    with pytest.raises(gr.Error, match="images/train: there is no shard set here"):
        handlers["list_rejects"]("images/train", "no text")


def test_what_is_given_stays_and_the_rest_is_drawn(root: str) -> None:
    from data_specs.root import read_spec

    spec, model = read_spec(None, root), studio.models(root, True)
    codes = open_shards(f"{root}/codes/train")[0]["codes"][0]
    base = studio.sample_base(model, codes)
    coarse = studio.given_codes(base, None, 1)
    assert (coarse[..., 0] == codes[..., 0]).all() and (coarse[..., 1:] == FREE).all()
    holed = studio.given_codes(base, studio.hole_of("1, 1, 3 4", (4, 4)), 2)
    assert (holed == FREE).any(-1).astype(int).tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]
    drawn, pictures = studio.draw(model, spec, 0, 2, holed, temperature=1.0, guidance=1.0, seed=3)
    assert (np.where(holed == FREE, drawn, holed) == drawn).all() and pictures.shape == (2, 32, 32, 3)
    assert studio.models(root, True) is model


def test_a_line_keeps_what_is_before_its_end() -> None:
    boxes = np.array([[0, 0, 30, 8], [0, 8, 14, 16]])  # two lines of a picture of 32 pixels
    free = studio.after_words(boxes, (4, 4), 32).astype(int).tolist()
    assert free == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize("words", ["1, 2, 3", "a b c d", "0, 0, 5, 4", "2, 0, 2, 4", "-1, 0, 2, 2"])
def test_a_hole_that_is_none_is_named(words: str) -> None:
    with pytest.raises(ValueError, match="hole"):
        studio.hole_of(words, (4, 4))


def test_a_copy_is_found_and_a_running_set_is_shown(root: str, tmp_path: Path) -> None:
    training = open_shards(f"{root}/images/train")
    found = neighbours.nearest(f"{root}/images/train", training[7]["image"])
    assert found.difference == 0 and np.array_equal(found.image, training[7]["image"])
    (tmp_path / "images").symlink_to(f"{root}/images")
    assert sets.set_names(root, "codes") == ["codes/train", "codes/val", "samples/default/codes"]
    with pytest.raises(ValueError, match="no shard set"):
        sets.open_now(root, "images/none")


def test_nothing_that_was_written_into_a_document_acts() -> None:
    item = {"__key__": "a", "cls": 0, "image": np.zeros((8, 8, 3), np.uint8), "json": {"text": SCRIPT, "title": SCRIPT}}
    assert "<img src=x" not in sets.about(item, SCRIPT) + macro("table", [SCRIPT], [[SCRIPT]])


def test_only_who_may_ask_is_answered() -> None:
    own, other = {"host": "127.0.0.1:7860"}, {"host": "evil.example:7860"}
    assert not refused(own, {}, None) and "this machine" in refused(other, {}, None)
    assert refused({**own, "origin": "https://evil.example"}, {}, None)
    assert not refused({**own, "origin": "http://127.0.0.1:7860"}, {}, None)
    assert "token" in refused(other, {}, "secret") and "token" in refused(own, {COOKIE: "guess"}, "secret")
    assert not refused(other, {COOKIE: "secret"}, "secret")
    for none in ("[", "[::1", "a[b]"):  # no address at all
        assert "this machine" in refused({"host": none}, {}, None)
        assert "no other" in refused({**own, "origin": f"http://{none}"}, {}, None)
    assert is_local("127.0.0.1") and is_local("localhost") and is_local("::1")
    assert not is_local("0.0.0.0") and not is_local("example.org")


def test_the_token_in_the_address_becomes_a_cookie() -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    page = Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))])
    client = TestClient(guarded(page, "secret"), base_url="http://cluster.example")
    assert client.get("/").status_code == 403 and client.get("/?token=guess").status_code == 403
    wrong = client.get("//evil.example/?token=%E2%82%AC", follow_redirects=False)
    assert wrong.status_code == 403 and "set-cookie" not in wrong.headers and "location" not in wrong.headers
    found = client.get("/?token=secret")
    assert (
        found.text == "here" and "token" not in str(found.url) and "'self'" in found.headers["content-security-policy"]
    )
    assert client.get("/").status_code == 200


def test_the_address_is_one_that_a_browser_takes() -> None:
    assert address_of("127.0.0.1", 80) == "http://127.0.0.1:80" and address_of("::1", 80) == "http://[::1]:80"
    assert address_of("0.0.0.0", 80) == f"http://{socket.gethostname()}:80"
    with listen("127.0.0.1", 0) as own:
        assert own.getsockname()[1] > 0


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ValueError, match="--port N"):
        listen("127.0.0.1", taken.getsockname()[1])
