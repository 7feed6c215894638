"""`dnd pretrained` and `dnd push` against a hub on loopback, a local copy of it, and a hub out of reach."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, hub_server
from huggingface_hub import constants
from typer.testing import CliRunner

from data_specs.root import read_spec
from data_specs.spec import load_spec
from infra import pretrained
from infra.cli import app
from infra.hub import downloaded_commit, fetch
from tokenize_jobs.networks import config_of as tokenizer_config
from tokenize_jobs.networks import initial_model
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import export_tokenizer, load_tokenizer
from train.generate import load_root
from train.model import DnDTransformer, config_of
from train.weights import open_weights

TINY = Path(__file__).parent.parent / "tiny.yaml"
REPO = "leonardPKU/DnD-Transformer"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local copy of a repository that is laid out as the authors' is, with tiny random weights."""
    folder = tmp_path_factory.mktemp("released")
    spec = load_spec(TINY, ["tokenizer.shortcut=false"])
    torch.manual_seed(0)
    for name in ("tok", "gpt/XXL"):
        (folder / name).mkdir(parents=True)
    export_tokenizer(RQVAE(tokenizer_config(spec)), folder / "tok/epoch4.pt", folder / "tok/config.yaml")
    torch.save({"model": DnDTransformer(config_of(spec)).state_dict()}, folder / "gpt/XXL/0750000.pt")
    return folder


@pytest.fixture
def tiny_release(monkeypatch: pytest.MonkeyPatch) -> str:
    """A release of the tiny preset, in the table of releases for this test: the real ones have 1.4 G parameters."""
    entry = pretrained.Release(str(TINY), "tok", {"": "gpt/XXL"}, "none")
    monkeypatch.setattr(pretrained, "RELEASES", (*pretrained.RELEASES, entry))
    return str(TINY)


@pytest.fixture
def hub(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)  # HF_ENDPOINT is read when the library is imported
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        files = [path for path in release.rglob("*") if path.is_file()]
        server.repos[REPO] = {str(path.relative_to(release)): path.read_bytes() for path in files}
        yield server


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_releases_are_listed_with_presets_that_exist() -> None:
    said = run("pretrained")
    for release in pretrained.RELEASES:
        assert release.preset in said and load_spec(release.preset).name == release.preset
        for size in release.transformers:
            load_spec(release.preset, [f"transformer.size={size}"])


def test_a_release_comes_by_name_with_its_commit_and_eight_pictures(
    hub: Hub, tiny_release: str, tmp_path: Path
) -> None:
    said = run("pretrained", tiny_release, "--root", tmp_path / "root")
    origins = json.loads((tmp_path / "root/pretrained.json").read_text())
    assert origins["tokenizer"]["commit"] == hub.sha and origins["transformer"]["file"] == "0750000.pt"
    assert len(origins["transformer"]["sha256"]) == 64
    assert (tmp_path / "root/samples/first.png").stat().st_size > 100 and "pictures: " in said
    assert read_spec(None, str(tmp_path / "root")).name == "tiny"


def test_a_local_copy_serves_as_well(release: Path, tiny_release: str, tmp_path: Path) -> None:
    run("pretrained", tiny_release, "--root", tmp_path / "root", "--from", release)
    assert load_root(str(tmp_path / "root")).transformer.config.depth == 2


def test_the_commit_of_a_local_copy_is_what_hf_download_noted(release: Path, tiny_release: str, tmp_path: Path) -> None:
    copy, commit = tmp_path / "copy", "0123456789abcdef" * 2 + "01234567"
    shutil.copytree(release, copy)
    for name in ("tok/epoch4.pt", "gpt/XXL/0750000.pt"):
        note = copy / ".cache/huggingface/download" / f"{name}.metadata"
        note.parent.mkdir(parents=True)
        note.write_text(f"{commit}\netag\n1.0\n")
    run("pretrained", tiny_release, "--root", tmp_path / "root", "--from", copy)
    origins = json.loads((tmp_path / "root/pretrained.json").read_text())
    assert [origins[name]["commit"] for name in ("tokenizer", "transformer")] == [commit, commit]
    cached = tmp_path / "hub/snapshots" / commit / "tok/epoch4.pt"
    assert downloaded_commit(cached) == commit and downloaded_commit(release / "a.pt") is None


def test_a_tokenizer_of_another_shape_is_refused_and_nothing_is_written(
    tiny_release: str, release: Path, tmp_path: Path
) -> None:
    other = load_spec(TINY, ["tokenizer.shortcut=false", "shape.codebook_size=48"])
    (tmp_path / "copy/tok").mkdir(parents=True)
    (tmp_path / "copy/gpt").symlink_to(release / "gpt")
    export_tokenizer(RQVAE(tokenizer_config(other)), tmp_path / "copy/tok/a.pt", tmp_path / "copy/tok/config.yaml")
    with pytest.raises(ValueError, match=r"a\.pt: its codes are .* of 48 rows, those of .*tiny\.yaml"):
        run("pretrained", tiny_release, "--root", tmp_path / "root", "--from", tmp_path / "copy")
    assert not (tmp_path / "root").exists()


def test_a_release_of_which_half_is_missing_leaves_nothing(tiny_release: str, release: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/tok").symlink_to(release / "tok")
    with pytest.raises(ValueError, match=r"copy/gpt/.*: no such file or folder"):
        run("pretrained", tiny_release, "--root", tmp_path / "root", "--from", tmp_path / "copy")
    published = tmp_path / "published"
    shutil.copytree(release / "tok", published / "tokenizer")
    (published / "spec.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"spec\.yaml: not YAML"):
        run("pretrained", published, "--root", tmp_path / "root")
    assert not (tmp_path / "root").exists()
    (published / "spec.yaml").unlink()
    for folder in (published, tmp_path / "used"):
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer/a").touch()
    with pytest.raises(ValueError, match=r"used/transformer: there is something already"):
        run("pretrained", published, "--root", tmp_path / "used")
    assert not (tmp_path / "used/tokenizer").exists()


def test_an_address_is_accepted_where_a_checkpoint_is(hub: Hub, release: Path, tmp_path: Path) -> None:
    run("import", "tokenizer", f"hf://{REPO}/tok", "--root", tmp_path / "hub_root")
    run("import", "tokenizer", release / "tok", "--root", tmp_path / "folder_root")
    run("import", "tokenizer", release / "tok/epoch4.pt", "--root", tmp_path / "file_root")
    weights = [
        (tmp_path / f"{name}_root/tokenizer/tokenizer.safetensors").read_bytes() for name in ("hub", "folder", "file")
    ]
    assert weights[0] == weights[1] == weights[2]


def test_what_push_published_is_what_pretrained_reads(
    hub: Hub, release: Path, tiny_release: str, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run("pretrained", tiny_release, "--root", first, "--from", release)
    (first / "images/train").mkdir(parents=True)
    (first / "images/train/000000.json").write_text("{}")
    assert "hf://me/mine" in run("push", first, "--to", "me/mine")
    assert "images/train/000000.json" not in hub.repos["me/mine"]
    run("push", first, "--to", "me/mine", "--shards")
    assert hub.repos["me/mine"]["images/train/000000.json"] == b"{}"
    run("pretrained", "hf://me/mine", "--root", second)
    for name in ("tokenizer/tokenizer.safetensors", "transformer/transformer.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    key = "quant_conv.weight"
    tune = load_spec(TINY, ["tokenizer.init_from=hf://me/mine/tokenizer", "tokenizer.shortcut=false"])
    start = initial_model(tune, str(tmp_path)).state_dict()[key]
    assert torch.equal(start, load_tokenizer(first / "tokenizer").state_dict()[key])
    with open_weights("hf://me/mine/transformer") as theirs, open_weights(str(first / "transformer")) as ours:
        assert all(torch.equal(theirs.get_tensor(name), ours.get_tensor(name)) for name in ours.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("imagenet_16x16x2", "--size", "XL"), "no transformer of size XL was released; there is XXL, XXXL"),
        (("imagenet_16x16x4", "--size", "XXL"), "there is none"),
        (("no_such",), "no such file or folder"),
        (("hf://nobody/nothing",), "hf://nobody/nothing: "),
        (("hf://nobody",), "write hf://owner/repo"),
    ],
)
def test_what_is_not_there_is_one_line(hub: Hub, arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["pretrained", *arguments, "--root", str(tmp_path / "root")])
    assert isinstance(result.exception, ValueError) and said in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "root").exists()


def test_a_hub_out_of_reach_names_the_one_command_to_run_elsewhere(
    hub: Hub, tiny_release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=f"hf download {REPO} --include 'tok/\\*' --local-dir FOLDER"):
        fetch(f"hf://{REPO}/tok")
    with pytest.raises(ValueError, match=r"--include 'tok/\*' --include 'gpt/XXL/\*' --local-dir"):
        pretrained.pretrained(tiny_release, None, "/nowhere")


def test_a_folder_must_hold_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one \.pt file is wanted; here: none"):
        pretrained.checkpoint_in(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"here: a\.pt, b\.pt"):
        pretrained.checkpoint_in(tmp_path)
