"""What the owner of a set sees and publishes: status, contact sheet, card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image

from data_specs.lease import hold
from infra.card import write_card
from infra.commands.data import verify
from infra.look import look
from infra.status import status_lines
from pipeline.running import JobReport
from pipeline.truth import check_truth
from pipeline.waiting import Try

sys.path.insert(0, str(Path(__file__).parent.parent / "pipeline"))
from sets import render_here, text_spec, write_texts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered set of ten documents, one of them rejected, and all those in another script filtered."""
    folder = tmp_path_factory.mktemp("owning")
    write_texts(folder / "texts/a.jsonl", [*(f"a{i}" for i in range(9)), "broken"])
    with (folder / "texts/a.jsonl").open("a") as file:
        file.write(json.dumps({"id": "greek", "text": "αβ γδ"}) + "\n")
    render_here(text_spec(folder / "texts", "render.filters.scripts=[LATIN]", "render.val_share=0.1"), folder / "run")
    return folder / "run"


def test_the_card_has_a_head_that_the_hub_reads_and_names_every_document(root: Path) -> None:
    text = Path(write_card(str(root))).read_text()
    head, body = text.removeprefix("---\n").split("---\n", 1)
    about = yaml.safe_load(head)
    assert about["license"] == "cc-by-4.0" and about["size_categories"] == ["n<1K"]
    assert about["configs"][0]["data_files"][1] == {"split": "validation", "path": "val/*.tar"}
    named = [json.loads(line) for line in (root / "images/attribution.jsonl").read_text().splitlines()]
    assert sorted(one["id"] for one in named) == [f"a{i}" for i in range(9)]
    assert "| CC-BY-4.0 | 9 | 9 |" in body and "- text: texts" in body
    assert "filtered: 1 mostly in another script" in body
    assert str(root.parent) not in body.split("```yaml")[0]


def test_the_sheet_shows_kept_and_dropped(root: Path) -> None:
    receipts = {int(p.stem): json.loads(p.read_text()) for p in (root / "images/train").glob("00*.json")}
    number = next(n for n, receipt in receipts.items() if receipt["rejected"] or receipt["filtered"])
    sheet = Image.open(look(str(root), "images/train", number))
    assert sheet.width > 1000 and len(sheet.convert("RGB").getcolors(1 << 20) or []) > 10
    with_boxes = Image.open(look(str(root), "images/train", number, boxes=True))
    assert with_boxes.size == sheet.size and with_boxes.tobytes() != sheet.tobytes()
    [line] = check_truth(str(root / "images/train"))
    assert "100.0% of" in line and "words have ink" in line
    with pytest.raises(ValueError, match="unit 99 of"):
        look(str(root), "images/train", 99)
    with pytest.raises(ValueError, match="no set of rendered images"):
        look(str(root), "codes/train", 0)


def test_status_of_a_finished_and_of_a_running_set(root: Path) -> None:
    from data_specs.records import RangeUnit
    from data_specs.units import read_plan

    lines = list(status_lines(str(root)))
    assert any(line.startswith("images/train: ") and "0 failed" in line for line in lines)
    assert any("filtered: 1 mostly in another script" in line for line in lines)
    plan = read_plan(str(root / "images/train"))
    assert plan is not None
    (root / "images/train/manifest.json").rename(root / "held")
    try:
        report = JobReport(plan, [])
        report.write([Try(0, RangeUnit(unit=1, first=0, count=1), 0.0)], {0: "node-7"}, failed=1)
        text = "\n".join(status_lines(str(root)))
        assert f"0/{plan.num_units} units done, 1 failed" in text
        assert "1 units running on 1 workers" in text and "on node-7" in text
        report.write([], {}, failed=1, ended=True)
        assert "the run has ended" in "\n".join(status_lines(str(root)))
        report.remove()
        assert f"{plan.num_units}/{plan.num_units} units done" in "\n".join(status_lines(str(root)))
    finally:
        (root / "held").rename(root / "images/train/manifest.json")


def test_nothing_is_cleaned_away_under_a_job_that_writes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = root / "images/train/000099-00000000.tar"  # its receipt is about to come
    for address in (root, root / "images/train"):
        tar.write_bytes(b"a shard")
        with hold(str(root / "images"), "dnd render", shared=True), pytest.raises(typer.Exit):
            verify(str(address), clean=True, truth=False)
        assert (
            tar.exists() and "is not cleaned: " in (said := capsys.readouterr().out) and "`dnd render` writes" in said
        )
        with pytest.raises(typer.Exit):
            verify(str(address), clean=True, truth=False)
        assert not tar.exists() and f"removed {tar}\n" in capsys.readouterr().out
