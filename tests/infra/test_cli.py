"""The command as a user meets it: the whole way on a tiny spec, and one-line errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, serious_faults
from command import dnd
from namesakes import write_namesakes
from typer.testing import CliRunner

from data_specs import load_spec, open_shards
from infra.cli import app
from infra.demo import demo_overrides
from infra.legibility import sweep_name
from train.generate import load_root

TINY = Path(__file__).parent.parent / "tiny.yaml"
HERE = ("--workers", "0")  # a worker of Ray takes seconds to load torch; what several do is test_runner.py's


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with all stages done by one command, beside files of a user's with the names of our packages."""
    folder = tmp_path_factory.mktemp("whole")
    write_namesakes(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DND_WANDB", "1")
        result = dnd("run", TINY, "--root", "run", *HERE, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run"


def test_no_child_of_a_run_imports_from_the_working_directory(finished: Path) -> None:
    """Nor do the ranks of test_launch.py and the workers of test_runner.py."""
    assert (finished.parent / "train.py").is_file() and not (finished.parent / "ran").exists()


def test_the_whole_way_leaves_what_the_design_names(finished: Path) -> None:
    for name in (
        "spec.yaml",
        "images/train/manifest.json",
        "tokenizer/tokenizer.safetensors",
        "codes/val/manifest.json",
        "transformer/transformer.safetensors",
        "transformer/ema.safetensors",
        "samples/default/grid.png",
        "evaluation/summary.json",
        "report/index.html",
        "report/metrics.json",
    ):
        assert (finished / name).is_file(), name
    samples = np.load(finished / "samples/default/samples.npz", allow_pickle=False)["arr_0"]
    assert samples.shape == (8, 32, 32, 3) and samples.dtype == np.uint8
    assert len(list((finished / "samples/default/pictures").glob("*.png"))) == 8
    assert "losses by the spec: l2, no LPIPS, no GAN." in (finished / "report/index.html").read_text()
    summary = json.loads((finished / "evaluation/summary.json").read_text())
    assert summary["reconstruction"]["psnr"] > 0 and summary["transformer"]["val_bits_per_code"] > 0


def test_a_second_run_finds_everything_done(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.tar")}
    result = dnd("run", TINY, "--root", finished, *HERE, cwd=finished.parent)
    assert result.returncode == 0, result.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.tar")} == before
    assert "reconstruct: done in 0:" in result.stdout and "worked       real words, real: " in result.stdout


@pytest.mark.parametrize(
    "refused",
    [
        ("render", "arxiv_image_16x16x8"),
        ("train-tokenizer", str(TINY), "--set", "tokenizer.learning_rate=1"),
        ("tokenize", str(TINY), "--set", "tokenize.compute_batch=3"),
        ("train", str(TINY), "--set", "train.batch_size=2"),
        ("train", "--set", "train.nonsense=2"),
        ("sample", str(TINY), "--set", "sample.temperature=0.77"),
        ("sample", "demo"),
        ("decode", "--out", "s3://"),
        ("decode", "--out", "gs:/bucket/pictures"),
    ],
    ids=lambda refused: "-".join(refused[:2]),
)
def test_a_refused_command_writes_nothing(finished: Path, refused: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, [refused[0], *refused[1:], "--root", str(finished)])
    assert isinstance(result.exception, ValueError), result.output
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "damaged", "said"),
    [
        (["tokenize", "--workers", "0"], "codes/val/plan.jsonl", "codes/val/plan.jsonl: not a valid planheader"),
        (["sample", "--set", "sample.name=new"], "tokenizer/tokenizer.safetensors", "not those that training wrote"),
        (["report"], "samples/default/images/manifest.json", "manifest.json: not a valid manifest"),
    ],
    ids=["tokenize", "sample", "report"],
)
def test_what_is_damaged_is_found_before_anything_is_written(
    finished: Path, command: list[str], damaged: str, said: str
) -> None:
    whole = (finished / damaged).read_bytes()
    if command[0] == "tokenize":
        (finished / "codes/train/000000.json").rename(finished / "held")
    (finished / damaged).write_bytes(b"{}")
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    try:
        result = CliRunner().invoke(app, [*command, "--root", str(finished)])
        assert isinstance(result.exception, ValueError) and said in str(result.exception), result.output
        assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    finally:
        (finished / damaged).write_bytes(whole)
        if command[0] == "tokenize":
            (finished / "held").rename(finished / "codes/train/000000.json")


@pytest.mark.parametrize("name", ["../../spec", "/tmp/x", "s3://bucket/x", "summary", ""])
def test_a_result_has_a_name_of_its_own(finished: Path, name: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "rocr", str(finished), "--name", name])
    assert result.exit_code == 2 and "letters, digits" in result.output


def test_the_roots_own_spec_serves_where_none_is_named(finished: Path) -> None:
    result = CliRunner().invoke(app, ["render", "--root", str(finished)])
    assert result.exit_code == 0 and "images/train: " in result.output, result.output


def test_verify_and_status_speak_of_every_set(finished: Path) -> None:
    verified, status = dnd("verify", finished), dnd("status", finished)
    assert verified.returncode == 0 and "0 faults" in verified.stdout, verified.stdout
    for name in ("images/train", "codes/val", "samples/default/codes"):
        assert name in status.stdout


def test_a_refusal_names_the_way_out_and_the_way_leads_out(finished: Path, tmp_path: Path) -> None:
    other = ("--set", "transformer.num_layers=3", "--set", "transformer.head_layers=[0, 2]")
    longer, new = ("--set", "train.steps=8"), tmp_path / "new"
    refused = dnd("train", "--root", finished, *other)
    assert refused.returncode == 1 and f"--root NEW --from {finished})" in refused.stderr
    taken = dnd("train", "--root", new, "--from", finished, *other)
    assert taken.returncode == 0 and "codes: " in taken.stdout, taken.stderr
    refused = dnd("train", "--root", new, *longer)
    assert refused.returncode == 1 and "--set train.extend_schedule=true" in refused.stderr
    extended = dnd("train", "--root", new, *longer, "--set", "train.extend_schedule=true")
    assert extended.returncode == 0, extended.stderr
    assert "transformer: finished, step 8 of 8" in dnd("status", new).stdout
    refused = dnd("sample", "--root", finished, "--set", "sample.temperature=0.8")
    assert refused.returncode == 1 and "--set sample.name=" in refused.stderr
    sampled = dnd("sample", "--root", new, *HERE, "--set", "sample.temperature=0.8", "--set", "sample.name=other")
    assert sampled.returncode == 0 and (new / "samples/other/grid.png").is_file(), sampled.stderr


def test_verify_finds_a_flipped_byte(finished: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(finished / "codes", root / "codes")
    tar = next((root / "codes/train").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    result = dnd("verify", root)
    assert result.returncode == 1 and tar.name in result.stdout


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "dark")])
def test_the_report_opens_in_a_browser_and_is_for_everyone(finished: Path, width: int, scheme: str) -> None:
    requests: list[str] = []
    with chromium(width, scheme) as page:
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"file://{finished}/report/index.html")
        assert page.locator("#figures .figure .verdict").count() == 5
        assert page.locator("img").count() == 6  # four of the stages, two of the training
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.locator("svg").count() == 5
        assert page.locator(".charts > div", has_text="depth 2").count() == 2
        timed = page.locator("#durations td:first-child").all_inner_texts()
        assert [name for name in timed if name in ("tokenizer", "transformer")] == ["tokenizer", "transformer"]
        assert timed.index("images/train") < timed.index("tokenizer") < timed.index("codes/train")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 60") == (
            scheme == "dark"
        )
        assert serious_faults(page) == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_python_gives_the_pictures_that_the_command_gives(finished: Path) -> None:
    model = load_root(str(finished))
    pictures = model.pictures(8, temperature=0.3, seed=load_spec(TINY).seed)
    made = np.load(finished / "samples/default/samples.npz", allow_pickle=False)["arr_0"]
    assert np.array_equal(np.stack([np.array(picture) for picture in pictures]), made)


def test_coarse_codes_are_completed_holes_painted_and_the_likeliest_kept(finished: Path) -> None:
    for name, options in (
        ("depths", ["--set", "sample.given={codes: codes/val, depths: 1}"]),
        ("hole", ["--set", "sample.given={codes: codes/val, hole: [1, 1, 3, 3]}"]),
        ("best", ["--set", "sample.candidates=3", "--set", "sample.top_k=[4, 8]"]),
    ):
        result = dnd("sample", TINY, "--root", finished, *HERE, "--set", f"sample.name={name}", *options)
        assert result.returncode == 0, result.stderr[-2000:]
    real, *made = (open_shards(str(finished / n)) for n in ("codes/val", "samples/depths/codes", "samples/hole/codes"))
    for i in range(8):
        wanted, completed, painted = (of[i % len(of)]["codes"][0] for of in (real, *made))
        assert np.array_equal(wanted[..., 0], completed[..., 0])
        outside = np.ones((4, 4), bool)
        outside[1:3, 1:3] = False
        assert np.array_equal(wanted[outside], painted[outside])


def test_evaluations_and_their_comparison(finished: Path) -> None:
    samples, train = finished / "samples/default/samples.npz", finished / "images/train"
    images = dnd("evaluate", "images", samples, "--reference", train, "--root", finished, "--force")
    assert images.returncode == 1 and "fewer" in images.stderr.lower(), images.stderr
    many = dnd("evaluate", "images", finished / "images/val", "--reference", train, "--root", finished)
    assert many.returncode == 0 or "fewer" in many.stderr.lower(), many.stderr
    compared = dnd("compare", finished, finished)
    assert compared.returncode == 0 and "summary.reconstruction.psnr" in compared.stdout, compared.stderr


def test_a_reference_of_the_wrong_kind_is_refused(finished: Path) -> None:
    result = dnd(
        "evaluate", "images", finished / "images/val", "--reference", finished / "images/val", "--root", finished
    )
    assert result.returncode == 1 and "gfid is measured against training images" in result.stderr


def test_text_evaluations_need_words_to_read(finished: Path) -> None:
    rocr = dnd("evaluate", "rocr", "--root", finished, "--num", 4)
    ppl = dnd("evaluate", "ppl-ocr", "--root", finished, "--num", 4)
    assert rocr.returncode == 0 and "word_accuracy: " in rocr.stdout, rocr.stderr
    assert ppl.returncode == 0 and (finished / "evaluation/ppl-ocr.json").is_file(), ppl.stderr


def test_temperatures_near_each_other_have_samples_of_their_own() -> None:
    names = [sweep_name("default", temperature) for temperature in (0.7, 0.1 + 0.2, 1.0, 0.701, 0.704)]
    assert names == ["default-t070", "default-t030", "default-t100", "default-t70p1", "default-t70p4"]


def test_legibility_draws_its_temperatures_and_leaves_a_table_and_a_picture(finished: Path) -> None:
    done = dnd("evaluate", "legibility", "--root", finished, "--num", 4, "--temperatures", "0.3,1")
    assert done.returncode == 0 and "read by tesserocr 5" in done.stdout, done.stderr
    result = json.loads((finished / "evaluation/legibility.json").read_text())
    assert result["temperature"] == 0.3 and result["sampling"]["top_p"] == 1.0
    assert [row["temperature"] for row in result["sweep"]] == [0.3, 1.0]
    assert result["exact_words"].keys() == {"real", "reconstructed"} and result["scribbles"] >= 0
    assert len(open_shards(str(finished / "samples/default-t100/images"))) == 4
    assert "real text" in (finished / "evaluation/legibility.svg").read_text()
    for num, name in ((3, "default-t100"), (6, "default-t100-n6")):
        done = dnd("evaluate", "legibility", "--root", finished, "--num", num, "--temperatures", "1", "--name", "again")
        assert done.returncode == 0 and (finished / "samples" / name / "grid.png").is_file(), done.stderr[-3000:]
    assert not (finished / "samples/default-t100-n3").exists()
    (finished / "look").mkdir(exist_ok=True)
    (finished / "look/.DS_Store").write_bytes(b"no picture")
    assert dnd("report", "--root", finished).returncode == 0
    assert "distinct real words" in (finished / "report/index.html").read_text()


def test_the_summary_is_made_anew_for_another_setting_or_engine(finished: Path) -> None:
    uri = finished / "evaluation/summary.json"
    first = json.loads(uri.read_text())
    assert first["histogram_bits_per_code"] > 0 and first["context_bits_per_code"] > 0
    assert first["bits_per_code"] == first["transformer"]["val_ema_bits_per_code"]
    assert first["words"]["real"]["num_images"] == 4 and first["words"]["engine_version"].startswith("5.")
    quality = json.loads((finished / "evaluation/reconstruction-val.json").read_text())["depths"][-1]
    assert first["reconstruction"]["psnr"] == quality["psnr"]
    stamp = uri.stat().st_mtime_ns
    assert dnd("evaluate", "summary", TINY, "--root", finished).returncode == 0
    assert uri.stat().st_mtime_ns == stamp
    fewer = dnd("evaluate", "summary", TINY, "--root", finished, "--set", "evaluate.ocr_images=2")
    assert fewer.returncode == 0, fewer.stderr
    assert json.loads(uri.read_text())["words"]["real"]["num_images"] == 2
    compared = finished / "evaluation/reconstruction-val.json"
    whole = compared.read_bytes()
    compared.write_text('{"depths": [{"psnr": NaN}]}')
    refused = CliRunner().invoke(
        app, ["evaluate", "summary", "--root", str(finished), "--set", "evaluate.ocr_images=3"]
    )
    compared.write_bytes(whole)
    assert isinstance(refused.exception, ValueError) and f"{compared}: not a result of" in str(refused.exception)
    uri.write_text(
        json.dumps(first | {"inputs": first["inputs"] | {"engine": None}, "words": {"missing": "no engine"}})
    )
    assert dnd("evaluate", "summary", TINY, "--root", finished).returncode == 0
    assert json.loads(uri.read_text())["words"]["engine"] == first["words"]["engine"]


FEW = ("render.sources.0.max_documents=80", "render.sources.1.max_documents=2")


def test_what_the_demo_makes_of_a_users_pdfs_and_texts_is_rendered(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    own = (*demo_overrides(str(TINY), f"{data}/pdf/good", f"{data}/text/passages.jsonl"), *FEW)
    result = dnd("render", TINY, "--root", tmp_path, *HERE, *(word for value in own for word in ("--set", value)))
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "images/train/manifest.json").read_text())["totals"]["written"] > 40


@pytest.mark.long
def test_the_demo_takes_a_users_pdfs_and_texts(ray_session: None, shared: Path, tmp_path: Path) -> None:
    data, few = shared / "data", [word for value in FEW for word in ("--set", value)]
    result = dnd(
        *("demo", TINY, "--root", tmp_path, "--pdfs", data / "pdf/good"),
        *("--text", data / "text/passages.jsonl", *few),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    totals = json.loads((tmp_path / "images/train/manifest.json").read_text())["totals"]
    assert totals["written"] > 40 and (tmp_path / "report/index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["render", "no-such-preset"], "no such file and no preset"),
        (["render", "demo", "--set", "shape.image_size=65"], "does not divide"),
        (["render", "demo", "--set", "train.micro_batch=3"], "unknown key"),
        (["render", "demo", "--set", "transformer.head_layers=[1,2,3,9]"], "last layer"),
        (["render", "demo", "--set", "shape.codebook_size=70000"], "65536"),
        (["tokenize", "demo"], "no trained tokenizer"),
        (["render", "demo", "--set", "render.sources=[{kind: pdf, uri: /nonexistent}]"], "/nonexistent"),
        (["render", TINY, "--ray-address", "127.0.0.1:9"], "no Ray head at 127.0.0.1:9"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = dnd(arguments[0], arguments[1], "--root", tmp_path, *arguments[2:])
    assert result.returncode == 1
    assert said in result.stderr and "Traceback" not in result.stderr


def test_an_unwritable_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = dnd("render", TINY, "--root", tmp_path / "file" / "root")
    assert result.returncode == 1 and "Traceback" not in result.stderr and str(tmp_path) in result.stderr
