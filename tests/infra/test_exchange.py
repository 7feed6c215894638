"""`dnd export` and `dnd import`: a root's weights as released files and back, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import dnd

from data_specs.spec import load_spec
from tokenize_jobs.networks import config_of as tokenizer_config
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer, save_tokenizer
from train.model import DnDTransformer, config_of
from train.weights import import_transformer, load_transformer, size_of_released

TINY = Path(__file__).parent.parent / "tiny.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with random weights of both models."""
    root, spec = (
        tmp_path_factory.mktemp("exchange"),
        load_spec(TINY, ["tokenizer.shortcut=false"]),
    )  # released ones have none
    torch.manual_seed(0)
    save_tokenizer(RQVAE(tokenizer_config(spec)), root / "tokenizer")
    torch.save({"model": DnDTransformer(config_of(spec)).state_dict()}, root / "random.pt")
    import_transformer(root / "random.pt", root / "transformer", config_of(spec))
    return root


def test_a_transformer_goes_out_and_comes_back(root: Path, tmp_path: Path) -> None:
    out = dnd("export", "transformer", tmp_path / "t.pt", "--root", root)
    assert out.returncode == 0, out.stderr
    back = dnd("import", "transformer", tmp_path / "t.pt", "--preset", TINY, "--root", tmp_path / "new")
    assert back.returncode == 0, back.stderr
    before, after = (load_transformer(r / "transformer").state_dict() for r in (root, tmp_path / "new"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = dnd("import", "transformer", tmp_path / "t.pt", "--preset", TINY, "--root", tmp_path / "new")
    assert again.returncode == 1 and "something already" in again.stderr


def test_a_file_that_would_lie_elsewhere_is_refused_by_its_scheme(root: Path, tmp_path: Path) -> None:
    for arguments in (("export", "transformer", "gs://b/t.pt", "--root", root), ("accept", "--out", "s3://b/out")):
        done = dnd(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and str(arguments[2]).partition("b/")[0] in done.stderr
        assert not list(tmp_path.iterdir())


def test_the_size_is_what_the_weights_say(tmp_path: Path) -> None:
    for size, heads in (("XXL", "[39,47]"), ("XXXL", "[39,47]"), ("B", "[9,11]")):
        with torch.device("meta"):
            changes = [f"transformer.size={size}", f"transformer.head_layers={heads}"]
            shapes = DnDTransformer(config_of(load_spec("imagenet_16x16x2", changes))).state_dict()
        state = {f"module.{name}": torch.zeros(1).expand(t.shape) for name, t in shapes.items()}
        torch.save({"module": state}, tmp_path / f"{size}.pt")
        assert size_of_released(tmp_path / f"{size}.pt") == size
    torch.save({"layers.0.w": torch.zeros(1)}, tmp_path / "other.pt")
    assert size_of_released(tmp_path / "other.pt") is None
    wrong = dnd("import", "transformer", tmp_path / "B.pt", "--preset", "imagenet_16x16x2", "--root", tmp_path / "r")
    assert wrong.returncode == 1 and "12 layers of width 768" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_tokenizer_goes_out_and_comes_back(root: Path, tmp_path: Path) -> None:
    out = dnd("export", "tokenizer", tmp_path / "t.pt", "--root", root)
    assert out.returncode == 0, out.stderr
    back = dnd("import", "tokenizer", tmp_path / "t.pt", "--root", tmp_path / "new")
    assert back.returncode == 0, back.stderr
    before, after = (load_tokenizer(r / "tokenizer").state_dict() for r in (root, tmp_path / "new"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_wrong_preset_and_a_cut_file_are_one_line(root: Path, tmp_path: Path) -> None:
    arguments = ("--preset", "imagenet_16x16x2", "--size", "XXL", "--root", tmp_path / "new")
    wrong = dnd("import", "transformer", root / "random.pt", *arguments)
    (tmp_path / "cut.pt").write_bytes((root / "random.pt").read_bytes()[:5000])
    cut = dnd("import", "transformer", tmp_path / "cut.pt", *arguments)
    for result, said in ((wrong, "cls_embedding.embedding_table.weight is [1, 32]"), (cut, "cut.pt")):
        assert result.returncode == 1 and said in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").rglob("*.safetensors"))
