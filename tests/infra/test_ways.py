"""The README's ways in, as they stand there, on little data and for a few steps; the demo's root serves the others."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from command import dnd
from hub_server import hub_server

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "tests/tiny.yaml"


def way(title: str) -> list[list[str]]:
    """The commands under a heading of the README, in words, without `dnd` and comments."""
    section = next(
        part
        for part in re.split(r"^##+ ", (REPOSITORY / "README.md").read_text(), flags=re.M)
        if part.startswith(title)
    )
    lines = re.sub(r"\\\n", " ", section).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("    dnd ")]


def run(folder: Path, *words: str) -> str:
    here = ("--workers", "0") if words[0] in ("demo", "run", "render", "tokenize", "sample") else ()
    done = dnd(*words, *here, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the demo ran, as `make demo` runs it, and what it said."""
    folder = tmp_path_factory.mktemp("ways")
    return folder, run(folder, "demo", str(TINY), "--root", "runs/demo")


def test_the_demo_ends_with_a_verdict_and_commands_that_run(laptop: tuple[Path, str]) -> None:
    folder, said = laptop
    for stage in ("render", "train-tokenizer", "tokenize", "train", "reconstruct", "sample"):
        assert f"{stage}: done in " in said
    assert len(re.findall(r"^(?:worked|look here|not measured) +\S", said, re.M)) == 5
    assert re.search(r"^took \d+:\d\d: render \d+:\d\d, ", said, re.M)
    assert f"report: {folder}/runs/demo/report/index.html" in said
    tries = said.partition("Try next:")[2].splitlines()[1:]
    for line in tries:
        words = shlex.split(line.partition(">")[0], comments=True)
        assert run(folder, *words[words.index("infra.cli" if "infra.cli" in words else "dnd") + 1 :])
    assert len(tries) == 3 and (folder / "runs/demo/samples/cold/grid.png").is_file()


def test_own_documents(laptop: tuple[Path, str]) -> None:
    folder, _ = laptop
    commands = way("Your own documents")
    assert [words[0] for words in commands] == ["spec", "render", "look", "run"]
    (folder / "my_pdfs").mkdir()
    pdf = next((folder / "runs/demo/inputs").rglob("*.pdf"))
    for number in range(10):
        shutil.copy(pdf, folder / f"my_pdfs/{number}.pdf")
    text = run(folder, *commands[0][: commands[0].index(">")])
    (folder / "mine.yaml").write_text(text.replace("base: demo", f"base: {TINY}"))  # fewer steps, smaller pictures
    said = [run(folder, *words) for words in commands[1:]]
    assert "render: done in " in said[0] and "look" in said[1] and "Try next:" in said[2]
    assert (folder / "runs/mine/samples/default/grid.png").is_file()


def test_another_model_on_the_same_data(laptop: tuple[Path, str]) -> None:
    folder, _ = laptop
    said = [run(folder, *words) for words in way("Another model on the same data")]
    assert "GiB" in said[0] or "GB" in said[0]
    assert "codes: " in said[1] and "train: done in " in said[1]
    assert "transformer.width" in said[3] and "transformer: bits per code" in said[3]
    assert (folder / "runs/wider/samples/default/grid.png").is_file()


def test_released_checkpoints(laptop: tuple[Path, str]) -> None:
    """From a hub on loopback, which holds what `dnd push` published: the authors' models have 1.4 G parameters."""
    folder, _ = laptop
    listed, fetched, sampled, _ = way("Released checkpoints")
    fetched = ["pretrained", "hf://me/demo", *fetched[fetched.index("--root") :]]
    with hub_server() as hub:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        for words in (listed, ["push", "runs/demo", "--to", "me/demo"], fetched):
            done = dnd(*words, cwd=folder, environment=os.environ | own)
            assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "runs/released/samples/first.png").is_file()
    run(folder, *sampled)
    assert (folder / "runs/released/samples/default/grid.png").is_file()
