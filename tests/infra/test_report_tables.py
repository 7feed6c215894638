"""The report's table of published values: ours stand beside one only where they may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_specs import load_spec
from data_specs.records import ImageScores, Quality, Reconstruction, Result, SetInfo
from data_specs.root import record_spec
from infra.report import report
from infra.report.tables import against_published, table_of
from train.evaluation.results import read_result

RESULTS = Path(__file__).parents[1] / "train/evaluation/results"


def here(results: dict[str, Result], preset: str, root: Path, *overrides: str) -> dict[tuple[Any, ...], list[str]]:
    """{(figure, data, px, model, guidance): what stands there} of the cells that are not empty."""
    rows = against_published(results, load_spec(preset, overrides), str(root))
    cells = ((row, row.published.conditions) for row in rows if row.here)
    return {(row.name, of.data, of.size, of.model, of.guidance): row.here for row, of in cells}


def gfid(root: Path, label: str, count: int) -> dict[str, Result]:
    made = read_result(str(RESULTS / "gfid-forced.json"))
    assert isinstance(made, ImageScores)
    extractor = made.extractor.model_copy(update={"name": "inception-2015-12-05"})
    samples = SetInfo(uri=f"{root}/samples/default/samples.npz", count=count, digest=made.samples.digest)
    changes = {"figures": {label: 3.25}, "extractor": extractor, "samples": samples}
    return {"gfid": made.model_copy(update=changes)}


def test_a_generation_is_paired_by_what_drew_it_and_differences_are_named(tmp_path: Path) -> None:
    record_spec(load_spec("imagenet_16x16x2", ["sample.guidance=1.5"]), str(tmp_path), "samples/default", ())
    cells = here(gfid(tmp_path, "gfid", 50_000), "imagenet_16x16x2", tmp_path)
    assert cells["gFID", "ImageNet", 256, "DnD XXL", 1.5] == ["3.25 (gfid)"]
    assert cells["gFID", "ImageNet", 256, "DnD XXXL", 1.5] == ["3.25 (gfid; but model DnD XXL, not DnD XXXL)"]
    few = here(gfid(tmp_path, "gfid[5,000 images]", 5000), "imagenet_16x16x2", tmp_path)
    assert few["gFID", "ImageNet", 256, "DnD XXL", 1.5] == ["3.25 (gfid; but images 5,000, not 50,000)"]
    assert here(gfid(tmp_path, "gfid", 50_000), "imagenet_16x16x4", tmp_path) == {}


def test_readings_of_another_size_or_data_set_have_nothing_to_say(tmp_path: Path) -> None:
    read = {"rougeL": 0.8, "num_images": 1000, "engine": "tesserocr", "engine_version": "5.5.4"}
    one = {"rocr": read_result(str(RESULTS / "rocr.json")).model_copy(update=read)}
    assert here(one, "demo", tmp_path) == {} and here(one, "text_image_24x24x1", tmp_path) == {}
    cells = here(one, "text_image_24x24x1", tmp_path, "shape.image_size=512", "shape.grid=[32,32]")
    said = ["0.8 (rocr; but reader tesserocr 5.5.4, not Qwen2-VL-72B)"]
    assert cells["ROUGE-L", "Text-Image", 512, "RQ-VAE", None] == said


def test_only_those_published_figures_that_concern_the_run_are_listed(tmp_path: Path) -> None:
    assert against_published({}, load_spec("demo"), str(tmp_path)) == []
    rows = against_published({}, load_spec("imagenet_16x16x4"), str(tmp_path))
    assert {row.published.conditions[:3] for row in rows} == {("ImageNet", 256, 4)} and len(rows) == 3


def test_a_spec_of_images_alone_and_a_package_that_is_missing_have_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PACKAGES", ("pillow", "no-such-package"))
    shape = "{image_size: 384, grid: [24, 24], depth: 1, codebook_size: 512}"
    (tmp_path / "spec.yaml").write_text(f"name: pages\nshape: {shape}\nrender: {{sources: [{{kind: docstrings}}]}}\n")
    page = Path(report.write_report(str(tmp_path))).read_text()
    assert "codebook of 512" in page and "transformer of" not in page and "no-such-package" not in page
    assert json.loads((tmp_path / "report/metrics.json").read_text())["versions"]["no-such-package"] is None


def test_the_depths_of_a_reconstruction_stand_side_by_side() -> None:
    for name, names in (("reconstruction-val", []), ("reconstruction-lpips", ["LPIPS"])):
        made = read_result(str(RESULTS / f"{name}.json"))
        table = table_of(made)
        assert isinstance(made, Reconstruction) and table.head == ["codes a position", "1", "2"]
        quality = ["images", "of them reproduced exactly", "PSNR, dB", "PSNR of the mean error, dB", "SSIM"]
        size = ["bits a pixel", "bits of codes for a bit of image"]
        use = ["share of the codebook in use", "perplexity of the codes"]
        assert [label for label, _ in table.rows] == [*quality, *size, *names, *use]
        deepest = made.depths[-1].model_dump(include=set(Quality.model_fields))
        assert Quality(**deepest).psnr == table.rows[2][1][1]
