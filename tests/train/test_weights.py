"""Transformers on disk: released files in and out, and those that are refused."""

import argparse
import errno
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file

from data_specs import cache, storage
from train.model import DnDTransformer, TransformerConfig
from train.sampling import sample_codes
from train.weights import export_transformer, import_transformer, load_transformer

TINY = TransformerConfig(3, 2, 16, 19, (2, 2), (0, 2), num_classes=4, class_dropout=0.1)
WIDE = TransformerConfig(3, 2, 24, 19, (2, 2), (0, 2), num_classes=4, class_dropout=0.1)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {name: torch.randn_like(t) for name, t in DnDTransformer(TINY).state_dict().items()}


def saved(path, content):
    torch.save(content, path)
    return path


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path, state, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    import_transformer(saved(tmp_path / "a.pt", state), tmp_path / "out", TINY)
    one, other = (tmp_path / "out" / name for name in ("transformer.safetensors", "ema.safetensors"))
    assert one.read_bytes() == other.read_bytes() and not one.samefile(other)


def no_links(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("key", ["model", "module", "state_dict", "ema", None])
@pytest.mark.parametrize("wrapper", ["", "module._orig_mod."])
def test_weights_come_in_from_any_key(tmp_path, state, key, wrapper):
    wrapped = {wrapper + name: tensor for name, tensor in state.items()}
    args = argparse.Namespace(num_pred_heads=2, pred_head_positions="0, 2", image_size=32, downsample_size=16)
    wrapped[wrapper + "layers.0.attention.kv_cache.k_cache"] = torch.zeros(2)
    wrapped[wrapper + "causal_mask"] = torch.ones(2, dtype=torch.bool)
    content = {key: wrapped, "args": args, "steps": 5, "optimizer": {"lr": 1e-4}} if key else wrapped
    import_transformer(saved(tmp_path / "a.pt", content), tmp_path / "out", TINY)
    for ema in (True, False):
        model = load_transformer(tmp_path / "out", ema=ema)
        assert model.config == TINY and not model.training
        torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)


def test_weights_and_their_average_are_kept_apart(tmp_path, state):
    average = {name: tensor + 1 for name, tensor in state.items()}
    import_transformer(saved(tmp_path / "a.pt", {"model": state, "ema": average}), tmp_path / "out", TINY)
    torch.testing.assert_close(load_file(tmp_path / "out/transformer.safetensors"), state)
    torch.testing.assert_close(load_file(tmp_path / "out/ema.safetensors"), average)


def test_dtype_is_kept_on_disk_and_chosen_at_loading(tmp_path, state):
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    import_transformer(saved(tmp_path / "a.pt", half), tmp_path / "out", TINY)
    torch.testing.assert_close(load_file(tmp_path / "out/transformer.safetensors"), half)
    assert {p.dtype for p in load_transformer(tmp_path / "out").parameters()} == {torch.float32}
    model = load_transformer(tmp_path / "out", dtype=torch.bfloat16)
    assert sample_codes(model, [0, 1]).shape == (2, 4, 2)


def test_of_a_remote_folder_only_what_is_loaded_is_fetched(tmp_path, state, s3_root):
    import_transformer(saved(tmp_path / "a.pt", state), tmp_path / "out", TINY)
    for name in ("transformer.json", "transformer.safetensors", "ema.safetensors"):
        storage.write(f"{s3_root}/transformer/{name}", tmp_path / "out" / name)
    storage.write(f"{s3_root}/transformer/step_00000010/rank_00000_of_00001.safetensors", bytes(10**6))
    torch.testing.assert_close(dict(load_transformer(f"{s3_root}/transformer").state_dict()), state, rtol=0, atol=0)
    fetched = {path.name.partition("-")[2] for path in cache.folder().iterdir() if path.suffix == ".safetensors"}
    assert fetched == {"ema.safetensors"}


def test_export_writes_what_import_reads(tmp_path, state):
    average = {name: tensor + 1 for name, tensor in state.items()}
    import_transformer(saved(tmp_path / "a.pt", {"model": state, "ema": average}), tmp_path / "first", TINY)
    export_transformer(tmp_path / "first", tmp_path / "b.pt")
    content = torch.load(tmp_path / "b.pt", weights_only=True)
    torch.testing.assert_close(content, {"model": state, "ema": average})
    import_transformer(tmp_path / "b.pt", tmp_path / "second", TINY)
    for name in ("transformer.safetensors", "ema.safetensors", "transformer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def refused(match, function, *args):
    with pytest.raises(ValueError, match=match) as error:
        function(*args)
    assert "\n" not in str(error.value)


def test_the_wrong_preset_is_refused(tmp_path, state):
    path = saved(tmp_path / "a.pt", {"model": state})
    refused(
        r"a.pt: cls_embedding.* is \[5, 16\] .* \[5, 24\].* 3 layers of width 16",
        import_transformer,
        path,
        tmp_path,
        WIDE,
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_missing_and_foreign_parameters_are_named(tmp_path, state):
    less = saved(tmp_path / "less.pt", {name: t for name, t in state.items() if name != "layers.1.ffn_norm.weight"})
    refused("less.pt: layers.1.ffn_norm.weight is missing", import_transformer, less, tmp_path / "out", TINY)
    more = saved(tmp_path / "more.pt", {**state, "layers.0.bias": torch.zeros(3)})
    refused(r"more.pt: layers.0.bias is \[3\].* should not be there", import_transformer, more, tmp_path / "out", TINY)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ({"pred_head_positions": "1,2"}, "pred_head_positions 1,2, not 0,2"),
        ({"num_pred_heads": 3}, "num_pred_heads 3, not 2"),
        ({"image_size": 256, "downsample_size": 16}, "image_size 256, not 32"),
    ],
)
def test_arguments_that_say_otherwise_are_refused(tmp_path, state, args, match):
    path = saved(tmp_path / "a.pt", {"model": state, "args": argparse.Namespace(**args)})
    refused(match, import_transformer, path, tmp_path / "out", TINY)


def test_the_size_in_the_arguments_counts_where_shapes_agree(tmp_path):
    with torch.device("meta"):
        shapes = DnDTransformer(TransformerConfig(12, 12, 768, 8, (2, 2), (11,))).state_dict()
    state = {name: torch.zeros(1).expand(t.shape) for name, t in shapes.items()}
    path = saved(tmp_path / "a.pt", {"model": state, "args": argparse.Namespace(gpt_model="GPT-L")})
    for size in (None, "x"):  # of which nothing can be said
        unsized = argparse.Namespace(gpt_model="GPT-L", image_size=size, downsample_size=size)
        saved(path, {"model": state, "args": unsized})
        config = TransformerConfig(12, 12, 768, 8, (2, 2), (11,))
        refused("gpt_model GPT-L, not GPT-B", import_transformer, path, tmp_path, config)
    refused(
        "gpt_model GPT-L, not GPT-B",
        import_transformer,
        path,
        tmp_path,
        TransformerConfig(12, 12, 768, 8, (2, 2), (11,)),
    )


def test_damaged_and_hostile_files_are_refused(tmp_path, state):
    whole = saved(tmp_path / "whole.pt", {"model": state}).read_bytes()
    for name, content in {"half.pt": whole[: len(whole) // 2], "empty.pt": b"", "text.pt": b"<html>"}.items():
        (tmp_path / name).write_bytes(content)
        refused(name, import_transformer, tmp_path / name, tmp_path / "out", TINY)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    refused("evil.pt", import_transformer, tmp_path / "evil.pt", tmp_path / "out", TINY)
    refused("none.pt", import_transformer, tmp_path / "none.pt", tmp_path / "out", TINY)
    refused("tensor", import_transformer, saved(tmp_path / "c.pt", {"model": {"a": 3}}), tmp_path / "out", TINY)
    refused("list", import_transformer, saved(tmp_path / "d.pt", [1]), tmp_path / "out", TINY)
    refused("missing", import_transformer, saved(tmp_path / "e.pt", {"model": {}}), tmp_path / "out", TINY)
    for name in ("tok_embeddings.weight", "cls_embedding.embedding_table.weight"):
        scalar = saved(tmp_path / "f.pt", state | {name: torch.tensor(1.0)})
        refused(rf"{name} is \[\] but", import_transformer, scalar, tmp_path / "out", TINY)
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_a_description_of_a_billion_layers_is_refused(tmp_path):
    described = json.loads(TINY.to_json()) | {"num_layers": 10**9, "head_layers": [0, 10**9 - 1]}
    (tmp_path / "transformer.json").write_text(json.dumps(described))
    refused("transformer.json: .*1000000000 layers: at most 4096", load_transformer, tmp_path)


@pytest.mark.parametrize("key", ["dim", "num_classes", "codebook_size"])
def test_a_description_wider_than_torch_can_count_is_refused(tmp_path, key):
    (tmp_path / "transformer.json").write_text(json.dumps(json.loads(TINY.to_json()) | {key: 2**60}))
    refused(f"transformer.json: .*{2**60}: at most {2**24} can be built", load_transformer, tmp_path)
    (tmp_path / "transformer.json").write_text(json.dumps(json.loads(TINY.to_json()) | {key: -1}))
    refused("transformer.json: .*must be at least 1", load_transformer, tmp_path)


def test_a_damaged_folder_is_refused(tmp_path, state):
    import_transformer(saved(tmp_path / "a.pt", state), tmp_path / "out", TINY)
    config = json.loads((tmp_path / "out/transformer.json").read_text())
    (tmp_path / "out/transformer.json").write_text(json.dumps({**config, "dim": 24}))
    refused("ema.safetensors: .* transformer.json", load_transformer, tmp_path / "out")
    (tmp_path / "out/transformer.json").write_text(json.dumps({**config, "colour": 1}))
    refused("transformer.json: .*colour", load_transformer, tmp_path / "out")
    (tmp_path / "out/transformer.json").write_text(json.dumps(config))
    whole = (tmp_path / "out/transformer.safetensors").read_bytes()
    (tmp_path / "out/transformer.safetensors").write_bytes(whole[:-7])
    refused("transformer.safetensors: no readable", load_transformer, tmp_path / "out", False)
    refused("none", load_transformer, tmp_path / "none")
