"""A user with released checkpoints only, for which random weights stand: `dnd import`, `dnd sample`, pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from command import dnd

from data_specs.spec import load_spec
from tokenize_jobs.networks import config_of as tokenizer_config
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import export_tokenizer
from train.generate import load_root
from train.model import DnDTransformer, config_of

TINY = Path(__file__).parent.parent / "tiny.yaml"
SPEC = f"""\
base: {TINY}
tokenizer: {{shortcut: false}}
transformer: {{num_classes: 4, class_dropout: 0.1}}
sample: {{num: 10, batch_size: 4, classes: 1-3, guidance: 1.7, temperature: [1.0, 0.9], top_k: [20, 0]}}
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rqvae.pt, config.yaml, the transformer's state dict, and the spec that describes them."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "mine.yaml").write_text(SPEC)
    spec = load_spec(folder / "mine.yaml")
    torch.manual_seed(0)
    export_tokenizer(RQVAE(tokenizer_config(spec)), folder / "rqvae.pt", folder / "config.yaml")
    state = {name: torch.randn_like(t) * 0.3 for name, t in DnDTransformer(config_of(spec)).state_dict().items()}
    args = argparse.Namespace(num_pred_heads=2, pred_head_positions="0,1", precision="bf16")
    torch.save(
        {"module": {f"module.{k}": t for k, t in state.items()}, "args": args, "steps": 7}, folder / "deepspeed.pt"
    )
    torch.save(state, folder / "bare.pt")
    return folder


def make_root(released: Path, root: Path, file: str) -> list[str]:
    """Imports both models into a root; returns the arguments that sample from it."""
    tokenizer = dnd("import", "tokenizer", released / "rqvae.pt", "--root", root)
    assert tokenizer.returncode == 0, tokenizer.stderr
    spec = str(released / "mine.yaml")
    transformer = dnd("import", "transformer", released / file, "--preset", spec, "--root", root)
    assert transformer.returncode == 0, transformer.stderr
    return ["sample", spec, "--root", str(root)]


def test_imported_checkpoints_are_sampled_the_same_here_and_by_two_workers(
    released: Path, ray_session: None, tmp_path: Path
) -> None:
    roots = {workers: tmp_path / f"root{workers}" for workers in (0, 2)}
    for (workers, root), file in zip(roots.items(), ("deepspeed.pt", "bare.pt"), strict=True):
        result = dnd(*make_root(released, root, file), "--workers", workers)
        assert result.returncode == 0, result.stderr
    here, two = (root / "samples/default/codes/manifest.json" for root in roots.values())
    assert here.read_bytes() == two.read_bytes()
    made = np.load(roots[0] / "samples/default/samples.npz", allow_pickle=False)["arr_0"]
    pictures = load_root(str(roots[2])).pictures(
        10, [1, 2, 3], guidance=1.7, temperature=[1.0, 0.9], top_k=[20, 0], seed=load_spec(released / "mine.yaml").seed
    )
    assert np.abs(np.stack([np.asarray(p) for p in pictures]).astype(int) - made).max() <= 1
    assert len(list((roots[0] / "samples/default/pictures").glob("*.png"))) == 10
    assert (roots[0] / "samples/default/grid.png").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("sample.classes=[4]", "sample.classes holds 4: the transformer's classes are 0..3"),
        ("sample.classes=3-1", "names no class"),
        ("sample.top_k=[1, 2, 3]", "one per depth"),
        ("transformer.class_dropout=0", "sample.guidance 1.7 needs a model trained with transformer.class_dropout"),
        ("tokenize.tokenizer=other", "no tokenizer; train one or run `dnd import tokenizer` first"),
        ("shape.codebook_size=64", "tokenizer.json: its codes are [4, 4, 2] of 32 rows, the spec's"),
        ("transformer.num_classes=5", "use the preset that it was trained or imported by"),
    ],
)
def test_what_the_model_cannot_do_is_one_line(
    released: Path, tmp_path_factory: pytest.TempPathFactory, option: str, said: str
) -> None:
    root = tmp_path_factory.getbasetemp() / "bad"
    if not root.exists():
        make_root(released, root, "bare.pt")
    result = dnd("sample", released / "mine.yaml", "--root", root, "--set", option)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and said in last and "Traceback" not in result.stderr, result.stderr
    assert not (root / "samples/default/codes/manifest.json").exists()
