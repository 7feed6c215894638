"""What a refused command leaves behind: nothing. Names, bytes and times under the root, beside it and in the working
directory are as they were, the exit code is not 0, and one line names the culprit.

Every command of `dnd` stands in COMMANDS or, with the reason, in EXCUSED.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from sets import render_here, text_spec, write_texts

from data_specs import digest
from data_specs.lease import hold
from data_specs.root import record_spec
from infra.cli import CHILDREN, app, main
from tokenize_jobs import training
from tokenize_jobs.networks import config_of as tokenizer_config
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import save_tokenizer
from train import job
from train.model import DnDTransformer, config_of
from train.weights import import_transformer

TINY = Path(__file__).parent.parent / "tiny.yaml"
HERE = ("--workers", "0")
PICTURES = "{root}/samples/default/samples.npz"
COMMANDS = {  # what stands behind the command, beside --root
    **dict.fromkeys(("render", "tokenize", "decode", "reconstruct", "sample", "run", "demo"), HERE),
    **dict.fromkeys(("train-tokenizer", "train", "evaluate summary", "look", "card", "report"), ()),
    **dict.fromkeys(("evaluate rocr", "evaluate ppl-ocr", "evaluate legibility"), ()),
    "submit": ("--on", "local", "--stage", "render"),
    "evaluate images": (PICTURES, "--reference", PICTURES, "--kind", "training"),
    "verify": ("--clean",),
    "remove": ("--ids", "../ids"),
    "duplicates": ("--out", "duplicates"),
    "import tokenizer": ("none.pt",),
    "import transformer": ("none.pt",),
    "export tokenizer": ("out.pt",),
    "export transformer": ("out.pt",),
    "pretrained": ("none",),
    "push": ("--to", "no name"),
}
EXCUSED = {
    **dict.fromkeys(("presets", "spec", "memory", "status", "query", "compare"), "writes nothing"),
    "doctor": "tries the rights of a root, which is what it is for",
    "view": "serves; what its studio draws goes nowhere",
    "accept": "has no root",
    **dict.fromkeys([f"bench {name}" for name in ("render", "tokenize", "load", "train", "sample")], "has no root"),
}
SPECS = [  # (words of a command that takes a SPEC, what its message names)
    (("--set", "render.nonsense=1"), "render.nonsense"),
    (("--set", "render.documents_per_unit=0"), "render.documents_per_unit"),
    (("none.yaml",), "none.yaml"),
    (("../broken.yaml",), "broken.yaml"),
    (("nosuch://bucket/spec.yaml",), "nosuch://"),
]
ROOTS = ["gs://bucket/run", "s3a://bucket/run", "s3://", "file:///run", "gs:/bucket/run", "../texts/a.jsonl"]
OF_SHAPE = ("tokenize", "train-tokenizer", "train", "sample", "evaluate summary")
OTHERS = [  # (command, override that would make another, what the message says): beside `was made for something else`
    *((name, "seed=7", "seed was 0, is now 7") for name in ("render", "train-tokenizer", "train", "sample", "run")),
    ("render", "render.documents_per_unit=3", "documents_per_unit was 4, is now 3"),
    ("train-tokenizer", "tokenizer.channels=64", "tokenizer.channels was 32, is now 64"),
    ("tokenize", "tokenize.compute_batch=3", "tokenize.compute_batch was 16, is now 3"),
    ("train", "transformer.width=64", "transformer.width was 32, is now 64"),
    ("sample", "transformer.num_classes=7", "has 1 classes, the spec 7"),
    ("sample", "sample.temperature=0.77", "sample.temperature was 0.3, is now 0.77"),
    *((name, "shape.codebook_size=64", "32") for name in OF_SHAPE),
]
DAMAGED = [  # (command, what of its input is cut, or gone where it must be there)
    ("render", "images/val/plan.jsonl"),
    *(("tokenize", f"images/{name}/manifest.json") for name in ("train", "val")),
    *((name, "tokenizer/tokenizer.json") for name in ("tokenize", "decode", "reconstruct", "sample")),
    *((name, "codes/val/manifest.json") for name in ("decode", "reconstruct")),
    ("reconstruct", "images/val/manifest.json"),
    ("train", "codes/train/manifest.json"),
    ("train-tokenizer", "images/train/manifest.json"),
    ("sample", "transformer/transformer.json"),
    *((name, "code.json") for name in ("tokenize", "sample", "train", "submit")),
    *((name, "spec.yaml") for name in ("render", "train", "evaluate summary", "submit")),
    *((name, "images/train/manifest.json") for name in ("card", "evaluate ppl-ocr")),
    *((name, "images/train/plan.jsonl") for name in ("look", "remove")),
]
MADE = {"tokenize": "codes", "sample": "samples", "train": "transformer"}  # goes before: made anew
FIRST = {  # what is named where the root is a file, if not that: what is looked at before the root
    **dict.fromkeys(("import tokenizer", "import transformer"), "none.pt"),
    **{"pretrained": "none", "evaluate images": "samples.npz"},
}
BUSY = {  # command -> the folder that another one writes
    **{"render": "images", "tokenize": "codes", "decode": "reconstructions", "reconstruct": "reconstructions"},
    **{"sample": "samples/default", "train": "transformer", "train-tokenizer": "tokenizer", "remove": "images"},
}


def commands(command: Any, name: str = "") -> Iterator[tuple[str, set[str]]]:
    """(name, parameters) of every command, from typer's own tree."""
    if below := getattr(command, "commands", None):
        for word, one in below.items():
            yield from commands(one, f"{name} {word}".strip())
    else:
        yield name, {parameter.name for parameter in command.params}


ALL = dict(commands(typer.main.get_command(app)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a root that has images, codes, samples and both models (of random weights), and what is wrong."""
    world = tmp_path_factory.mktemp("refused")
    write_texts(world / "texts/a.jsonl", [f"doc{number}" for number in range(12)])
    (world / "broken.yaml").write_text("render: [")
    (world / "ids").write_text("doc1\n")
    (world / "here").mkdir()
    root, spec = world / "run", text_spec(world / "texts", "sample.num=4")
    render_here(spec, root)
    record_spec(spec, str(root), "images", ("render",))
    torch.manual_seed(0)
    save_tokenizer(RQVAE(tokenizer_config(spec)), root / "tokenizer")
    torch.save({"model": DnDTransformer(config_of(spec)).state_dict()}, world / "random.pt")
    import_transformer(world / "random.pt", root / "transformer", config_of(spec))
    for words in ("tokenize", "sample"):
        ended = run(world / "here", words, *HERE, "--root", str(root))
        assert ended == 0, words
    for trained in (training.job_of(spec, str(root)), job.job_of(spec, str(root))):
        digest.claim(trained.folder, trained.identity)
    return world


def run(folder: Path, *words: str) -> int:
    """The exit code of the command, run here, in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CHILDREN.items():
            patch.setenv(name, value)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(sys, "argv", ["dnd", *words])
        patch.chdir(folder)
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def tree(folder: Path) -> dict[str, Any]:
    """Size, time and bytes of every file by path, and the folders."""
    found: dict[str, Any] = {}
    for parent, folders, files in os.walk(folder):
        found |= {os.path.join(parent, name): "folder" for name in folders}
        for path in (Path(parent, name) for name in files):
            found[str(path)] = (path.lstat().st_mtime_ns, path.read_bytes())
    return found


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = tree(folder)
    yield
    after = tree(folder)
    assert [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)] == []


def refuse(world: Path, capsys: pytest.CaptureFixture[str], command: str, words: Sequence[str], named: str) -> None:
    """The command is refused in one line that names the culprit, and the world stays as it was."""
    capsys.readouterr()
    with unchanged(world):
        code = run(world / "here", *command.split(), *words)
    said = capsys.readouterr().err
    assert code != 0 and named in said, (code, said)
    assert said.startswith("dnd: ") and said.count("\n") == 1 and "Traceback" not in said, said


def words_of(command: str, root: Path | str, *more: str) -> list[str]:
    return [*(word.format(root=root) for word in COMMANDS[command]), *more, "--root", str(root)]


def test_every_command_is_tried_or_excused() -> None:
    assert set(ALL) == set(COMMANDS) | set(EXCUSED) and not set(COMMANDS) & set(EXCUSED)


@pytest.mark.parametrize(("words", "named"), SPECS, ids=lambda value: str(value))
@pytest.mark.parametrize("command", [name for name in COMMANDS if "spec" in ALL[name] and "set_" in ALL[name]])
def test_a_spec_that_cannot_be(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, words: tuple[str, ...], named: str
) -> None:
    refuse(world, capsys, command, words_of(command, world / "run", *words), named)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_root_that_cannot_be(world: Path, capsys: pytest.CaptureFixture[str], command: str, root: str) -> None:
    is_file = root.startswith("..")
    named = FIRST.get(command, "a.jsonl") if is_file else root
    refuse(world, capsys, command, words_of(command, root), named)


@pytest.mark.parametrize(("command", "override", "named"), OTHERS)
def test_a_root_of_another(
    world: Path, capsys: pytest.CaptureFixture[str], command: str, override: str, named: str
) -> None:
    refuse(world, capsys, command, words_of(command, world / "run", "--set", override), named)


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """The world anew, to be changed."""
    return Path(shutil.copytree(world, tmp_path / "world"))


@pytest.mark.parametrize(
    ("command", "name", "gone"),
    [
        *((*one, False) for one in DAMAGED),
        *((*one, True) for one in DAMAGED if not one[1].endswith(("code.json", "plan.jsonl"))),
    ],
)
def test_an_input_that_is_damaged(
    copy: Path, capsys: pytest.CaptureFixture[str], command: str, name: str, gone: bool
) -> None:
    root = copy / "run"
    if made := MADE.get(command):
        shutil.rmtree(root / made)
    (root / name).unlink() if gone else (root / name).write_text("{")
    refuse(copy, capsys, command, words_of(command, root), name)


@pytest.mark.parametrize("command", BUSY)
def test_a_folder_in_which_another_writes(copy: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    root = copy / "run"
    if made := MADE.get(command):
        shutil.rmtree(root / made)
    with hold(str(root / BUSY[command]), "dnd other"):
        refuse(copy, capsys, command, words_of(command, root), f"{BUSY[command]}: `dnd other` writes here")


PREPARED = "{kind: arxiv, uri: FOLDER, metadata: FOLDER/papers.jsonl}"  # something is made of it under ROOT/inputs
SOURCES = {  # sources of which one is refused -> what the message names
    f"[{{kind: text, uri: FOLDER/none}}, {PREPARED}]": "/none: there is no document of kind text here",
    f"[{{kind: text, uri: FOLDER/bad.jsonl.gz}}, {PREPARED}]": "bad.jsonl.gz: damaged",
    f"[{{kind: text, uri: 'nosuch://bucket/x'}}, {PREPARED}]": "nosuch://bucket/x: nosuch:// is not known",
    f"[{PREPARED}, {{kind: text, uri: 's3://'}}]": "s3://: names no bucket",
    f"[{PREPARED}, {{kind: arxiv, uri: FOLDER}}]": "licences are known from a metadata snapshot alone",
    f"[{PREPARED}, {{kind: arxiv, uri: FOLDER, metadata: FOLDER/none}}]": "/none: there is no metadata snapshot",
    f"[{PREPARED}]": "there is no manifest",
}


@pytest.mark.parametrize("root", ["new/deep/run", "run"])
@pytest.mark.parametrize(("sources", "named"), SOURCES.items(), ids=SOURCES.values())
def test_a_source_that_is_refused_takes_back_what_was_made_of_the_others(
    copy: Path, capsys: pytest.CaptureFixture[str], root: str, sources: str, named: str
) -> None:
    (copy / "bad.jsonl.gz").write_bytes(b"\x1f\x8b\x08nonsense")
    (copy / "papers.jsonl").write_text('{"id": "2301.00001", "license": "http://creativecommons.org/licenses/by/4.0/"}')
    (copy / "run/inputs").mkdir()
    (copy / "run/inputs/mine").touch()
    words = words_of("render", copy / root, "--set", f"render.sources={sources.replace('FOLDER', str(copy))}")
    refuse(copy, capsys, "render", [*words, "--extend"] if root == "run" else [str(TINY), *words], named)


def test_a_refused_part_leaves_what_the_other_parts_may_have_planned_by(copy: Path) -> None:
    (copy / "papers.jsonl").write_text('{"id": "2301.00001", "license": "http://creativecommons.org/licenses/by/4.0/"}')
    sources = f"[{PREPARED}, {{kind: text, uri: FOLDER/none}}]".replace("FOLDER", str(copy))
    words = [str(TINY), *words_of("render", copy / "parts", "--set", f"render.sources={sources}")]
    assert run(copy, "render", *words, "--part", "1/2")
    assert [path.name for path in (copy / "parts/inputs").rglob("*") if path.is_file()]
