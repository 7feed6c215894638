"""Every command of examples/README.md, run as it stands there, on little data and for a few steps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import dnd
from PIL import Image

from data_specs import load_spec
from tokenize_jobs.networks import config_of as tokenizer_config
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import save_tokenizer
from train.model import DnDTransformer, config_of
from train.weights import import_transformer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHORT = {
    "render": ("render.sources.0.max_documents=8", "render.pages.max_pages=1", "render.val_share=0.5"),
    "train-tokenizer": ("tokenizer.steps=2", "tokenizer.batch_size=4"),
    "train": ("train.steps=2", "train.batch_size=4"),
}


def commands(title: str) -> list[list[str]]:
    """The commands under a heading, in words."""
    section = re.split(r"^## ", (EXAMPLES / "README.md").read_text(), flags=re.M)
    text = next(part for part in section if part.startswith(title))
    return [line.split() for line in re.findall(r"^    dnd (.*)$", text, re.M)]


def run(title: str, folder: Path) -> None:
    """Runs a section's commands in a folder that has the examples."""
    shutil.copytree(EXAMPLES, folder / "examples", dirs_exist_ok=True)
    for words in commands(title):
        of_all = [value for name in SHORT for value in SHORT[name]]  # a root has one spec
        short = of_all if words[0] in (*SHORT, "tokenize") else []
        workers = ("--workers", 0) if words[0] in ("render", "tokenize") else ()
        done = dnd(*words, *workers, *(word for value in short for word in ("--set", value)), cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]


def put_pdfs(shared: Path, folder: Path) -> None:
    """Eight good PDFs as `papers`: by their names, some are for training and some are not."""
    (folder / "papers").mkdir()
    for path in sorted((shared / "data/pdf/good").glob("*.pdf"), key=lambda path: path.stat().st_size)[:8]:
        shutil.copy(path, folder / "papers")


def test_own_pdfs(shared: Path, tmp_path: Path) -> None:
    put_pdfs(shared, tmp_path)
    run("Your own PDFs", tmp_path)
    assert list((tmp_path / "runs/own-pdfs/images").rglob("*.tar"))


def test_own_markdown(tmp_path: Path) -> None:
    notes = [
        {"id": f"n{i}", "text": f"# Title {i}\n\nA paragraph with **bold** words.\n\n- one\n- two"} for i in range(9)
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    run("Your own Markdown", tmp_path)
    assert list((tmp_path / "runs/own-markdown/images").rglob("*.tar"))


def test_fine_tuning(shared: Path, tmp_path: Path) -> None:
    put_pdfs(shared, tmp_path)
    spec, demo = load_spec("demo"), tmp_path / "runs/demo"
    torch.manual_seed(0)
    save_tokenizer(RQVAE(tokenizer_config(spec)), demo / "tokenizer")
    torch.save({"model": DnDTransformer(config_of(spec)).state_dict()}, tmp_path / "random.pt")
    import_transformer(tmp_path / "random.pt", demo / "transformer", config_of(spec))
    run("Fine-tuning a small model", tmp_path)
    assert (tmp_path / "runs/fine-tune/transformer/transformer.safetensors").is_file()


def test_evaluating_a_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("generated", "real"):
        (tmp_path / name).mkdir()
        for number in range(40):
            Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    run("Evaluating a folder", tmp_path)
    assert list((tmp_path / "runs/scores/evaluation").glob("*.json"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_spec_is_one_and_is_named_in_the_readme(path: Path) -> None:
    assert load_spec(path).name == path.stem and path.name in (EXAMPLES / "README.md").read_text()
