"""Tokenizers survive the disk bit for bit, in our layout and in the released one; bad and hostile files are refused."""

import argparse
import json
import os
import re
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from data_specs.records import CheckpointFile, Finished
from tokenize_jobs.job import weights_digest
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from tokenize_jobs.weights import export_tokenizer, import_tokenizer, load_tokenizer, read_released_yaml, save_tokenizer

TINY = {"embed_dim": 16, "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 16, "codebook_size": 32}
KINDS = {
    "shared": {"image_size": 16, "grid": 8, "depth": 3},
    "own": {"image_size": 16, "grid": 8, "depth": 2, "shared_codebook": False},
    "folded": {"image_size": (16, 32), "grid": (4, 8), "depth": 2},
    "deep": {"image_size": 16, "grid": 8, "depth": 12},  # depth 10 and 11 are repetitions too
}


def tiny(kind: str, **options: object) -> RQVAE:
    torch.manual_seed(0)
    model = RQVAE(RQVAEConfig(**{**TINY, **KINDS[kind], **options}))
    model.train()(torch.rand(2, 3, *model.config.image_size))  # so that the moving averages are not as at the start
    return model.eval()


def assert_same(one: RQVAE, other: RQVAE) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("kind", KINDS)
def test_our_layout_round_trip(tmp_path: Path, kind: str) -> None:
    model = tiny(kind).to(memory_format=torch.channels_last)
    save_tokenizer(model, tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert loaded.config == model.config
    assert_same(loaded, model)
    assert not loaded.training
    assert sorted(os.listdir(tmp_path / "tokenizer")) == ["tokenizer.json", "tokenizer.safetensors"]


def test_weights_in_bfloat16_keep_their_codebooks(tmp_path: Path) -> None:
    model = tiny("shared")
    save_tokenizer(model, tmp_path)
    loaded = load_tokenizer(tmp_path, dtype=torch.bfloat16)
    assert loaded.quant_conv.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.quantizer.codebooks[2].weight, model.quantizer.codebooks[2].weight)
    assert loaded.encode(torch.rand(1, 3, 16, 16)).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_released_layout_round_trip(tmp_path: Path, kind: str) -> None:
    model = tiny(kind)
    export_tokenizer(model, tmp_path / "model.pt", tmp_path / "config.yaml")
    state = torch.load(tmp_path / "model.pt", weights_only=True)["state_dict"]
    assert state.keys() == model.state_dict().keys()
    imported = import_tokenizer(tmp_path / "model.pt", tmp_path / "config.yaml")
    assert imported.config == model.config
    assert_same(imported, model)
    export_tokenizer(imported, tmp_path / "again.pt", tmp_path / "again.yaml")
    assert (tmp_path / "again.yaml").read_bytes() == (tmp_path / "config.yaml").read_bytes()


def test_golden_weights_through_both_layouts(shared: Path, tmp_path: Path) -> None:
    with safe_open(shared / "reference" / "rqvae_shared_codebook.safetensors", "pt") as file:
        about = {name: json.loads(text) for name, text in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {name.removeprefix("state_dict."): t for name, t in tensors.items() if name.startswith("state_dict.")}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "released.pt")
    (tmp_path / "config.yaml").write_text(json.dumps({"arch": {"type": "rq-vae", "code_hier": 1, **about}}))
    save_tokenizer(import_tokenizer(tmp_path / "released.pt", tmp_path / "config.yaml"), tmp_path)
    assert torch.equal(load_tokenizer(tmp_path).encode(tensors["images"]), tensors["codes"])


def released(folder: Path, model: RQVAE, **beside: object) -> tuple[Path, Path]:
    """A file as the authors' trainer writes it."""
    export_tokenizer(model, folder / "model.pt", folder / "config.yaml")
    torch.save({"state_dict": model.state_dict(), **beside}, folder / "model.pt")
    return folder / "model.pt", folder / "config.yaml"


def test_what_stands_beside_the_weights_is_read_past(tmp_path: Path) -> None:
    model = tiny("shared")
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict()
    average = {f"module.{name}": tensor * 0.5 for name, tensor in model.state_dict().items()}
    beside = {"epoch": np.int64(3), "best": np.float64(0.5), "args": argparse.Namespace(seed=0), "scheduler": schedule}
    paths = released(tmp_path, model, state_dict_ema=average, optimizer=optimizer.state_dict(), **beside)
    assert_same(import_tokenizer(*paths), model)
    averaged = import_tokenizer(*paths, ema=True)
    torch.testing.assert_close(averaged.quant_conv.weight, model.quant_conv.weight * 0.5)


def test_easydict_in_a_checkpoint_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    inner = module.EasyDict(lr=0.1)
    inner.lr = 0.1
    paths = released(tmp_path, tiny("shared"), config=module.EasyDict(optimizer=inner))
    monkeypatch.delitem(sys.modules, "easydict")
    import_tokenizer(*paths)


def test_the_configuration_in_an_optimizers_betas_is_read_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' trainer hands Adam an omegaconf list: with it the file holds all of their configuration."""

    def made(path: str, **content: object) -> Any:
        module, _, name = path.rpartition(".")
        for end in [place for place, letter in enumerate(f"{module}.") if letter == "."]:
            monkeypatch.setitem(
                sys.modules, module[:end], sys.modules.get(module[:end], types.ModuleType(module[:end]))
            )
        kind = getattr(sys.modules[module], name, None) or type(name, (), {"__module__": module})
        monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
        thing = kind()
        thing.__dict__.update(content)
        return thing

    about = {"ref_type": Any, "key_type": int, "element_type": Any, "flags": {}, "resolver_cache": defaultdict(dict)}
    environment = type(made("rqvae.utils.dist.DistEnv"))
    metadata = made("omegaconf.base.ContainerMetadata", object_type=environment, **about)
    node = made("omegaconf.nodes.AnyNode", _metadata=made("omegaconf.base.Metadata", key="betas"), _val=0.5)
    parent = made("omegaconf.dictconfig.DictConfig", _metadata=metadata, _content={"x": node})
    betas = made("omegaconf.listconfig.ListConfig", _metadata=metadata, _parent=parent, _content=[node])
    model = tiny("shared")
    paths = released(tmp_path, model, optimizer={"state": {}, "param_groups": [{"lr": 4e-5, "betas": betas}]})
    monkeypatch.undo()
    assert_same(import_tokenizer(*paths), model)


class Hostile:
    def __reduce__(self) -> tuple:
        return os.system, ("touch /tmp/owned-by-a-checkpoint",)


@pytest.mark.parametrize(
    ("thing", "name"), [(Hostile(), "system"), (nn.Linear(1, 1), "torch.nn.modules.linear.Linear")]
)
def test_other_objects_are_refused_by_name(tmp_path: Path, thing: object, name: str) -> None:
    paths = released(tmp_path, tiny("shared"), extra=thing)
    with pytest.raises(ValueError, match=rf"^[^\n]*model.pt: holds an object of [\w.]*{name}[^\n]*refused$"):
        import_tokenizer(*paths)
    assert not os.path.exists("/tmp/owned-by-a-checkpoint")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    checkpoint, config = released(tmp_path, tiny("shared"))
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"model": {}}, tmp_path / "other.pt")
    torch.save({"state_dict": {"epoch": 1}}, tmp_path / "numbers.pt")
    wider = tmp_path / "wider.yaml"
    wider.write_text(config.read_text().replace("n_embed: 32", "n_embed: 64"))
    for path, settings, message in [
        (tmp_path / "absent.pt", config, "absent.pt: cannot be read"),
        (tmp_path / "cut.pt", config, "cut.pt: "),
        (tmp_path / "other.pt", config, r"no state_dict in it \(found: model\)"),
        (tmp_path / "numbers.pt", config, "other than tensors: epoch"),
        (checkpoint, wider, r"codebooks.0.weight is \[33, 16\], the configuration says \[65, 16\]"),
        (checkpoint, tmp_path / "absent.yaml", "absent.yaml: cannot be read"),
        (config, config, "config.yaml: "),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            import_tokenizer(path, settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no state_dict_ema"):
        import_tokenizer(checkpoint, config, ema=True)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"depth": 10**9}, "1000000000 codes a position"),
        ({"num_res_blocks": 10**9}, "2000000000 blocks"),
        ({"embed_dim": 2**60}, f"{2**60} channels"),
        ({"ch": 2**60}, f"{2**60} channels"),
        ({"z_channels": 2**60}, f"{2**60} channels"),
    ],
)
def test_a_description_that_no_machine_could_build_is_refused(
    tmp_path: Path, changed: dict[str, int], said: str
) -> None:
    config = tiny("shared").config
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(config.to_json()) | changed))
    with pytest.raises(ValueError, match=rf"^[^\n]*tokenizer\.json: [^\n]*{said}[^\n]*at most"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("n_embed", "2.5", "codebook_size: Input should be a valid integer"),
        ("n_embed", "true", "codebook_size: Input should be a valid integer"),
        ("num_res_blocks", ".nan", "arch: .*"),
        ("resolution", "2.5", "arch: .*"),
        ("double_z", "*a8", "unfolds into more than 16384 values"),
    ],
)
def test_a_config_of_other_types_or_without_end_is_one_line(tmp_path: Path, key: str, value: str, said: str) -> None:
    checkpoint, config = released(tmp_path, tiny("shared"))
    unfolding = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 10}]\n" for n in range(1, 9))
    config.write_text(unfolding * ("*" in value) + re.sub(rf"(?m)^( *{key}:).*", rf"\1 {value}", config.read_text()))
    with pytest.raises(ValueError, match=rf"^[^\n]*config\.yaml: [^\n]*{said}[^\n]*$"):
        import_tokenizer(checkpoint, config)


def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path) -> None:
    model = tiny("shared")
    checkpoint, config = released(tmp_path, model)
    for dtype in (torch.complex64, torch.bool):
        weight = model.quant_conv.weight.detach().to(dtype)
        torch.save({"state_dict": model.state_dict() | {"quant_conv.weight": weight}}, checkpoint)
        with pytest.raises(ValueError, match=r"other than tensors: quant_conv\.weight"):
            import_tokenizer(checkpoint, config)


def test_a_pipe_is_no_checkpoint_and_not_waited_for(tmp_path: Path) -> None:
    checkpoint, config = released(tmp_path, tiny("shared"))
    os.mkfifo(tmp_path / "pipe")
    for paths in ((tmp_path / "pipe", config), (checkpoint, tmp_path / "pipe")):
        with pytest.raises(ValueError, match=r"pipe: cannot be read .*not a file"):
            import_tokenizer(*paths)


def test_names_in_a_file_stand_in_messages_short_and_on_one_line(tmp_path: Path) -> None:
    checkpoint, config = released(tmp_path, tiny("shared"))
    for content in ({"state_dict": {f"a\n{'b' * 10**5}": torch.ones(1)}}, {f"a\n{'b' * 10**5}": 1}):
        torch.save(content, checkpoint)
        with pytest.raises(ValueError, match=r"^[^\n]*a\\nbbb[^\n]*$") as caught:
            import_tokenizer(checkpoint, config)
        assert len(str(caught.value)) < 1000


def test_codebooks_said_to_be_shared_must_be_equal(tmp_path: Path) -> None:
    model = tiny("own")
    checkpoint, config = released(tmp_path, model)
    config.write_text(config.read_text().replace("shared_codebook: false", "shared_codebook: true"))
    with pytest.raises(ValueError, match=r"codebooks\.1\.weight differs from depth 0's"):
        import_tokenizer(checkpoint, config)


def test_python_tags_of_a_config_are_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        """
arch: !!python/object/new:easydict.EasyDict
  dictitems: &id001
    type: rq-vae
    hparams: !!python/object/new:easydict.EasyDict
      dictitems: {code_shape: !!python/tuple [8, 8, 4], n_embed: 16}
      state: {n_embed: 16}
  state: *id001
args: !!python/object:argparse.Namespace {seed: 0}
run: !!python/object/apply:os.system ["touch /tmp/owned-by-a-config"]
kind: !!python/name:os.system
other: !EasyDict {a: 1}
"""
    )
    content = read_released_yaml(path)
    assert content["arch"] == {"type": "rq-vae", "hparams": {"code_shape": [8, 8, 4], "n_embed": 16}}
    assert content["args"] == {"seed": 0}
    assert content["other"] == {"a": 1}
    assert not os.path.exists("/tmp/owned-by-a-config")


@pytest.mark.parametrize(
    "text", ["arch: [", "just words", "[" * 5000, "arch: {type: vqgan, hparams: {}, ddconfig: {}}"]
)
def test_broken_configs_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*config\.yaml: [^\n]*$"):
        import_tokenizer(tmp_path / "model.pt", tmp_path / "config.yaml")


def test_broken_tokenizer_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: no readable"):
        load_tokenizer(tmp_path)
    save_tokenizer(tiny("shared"), tmp_path)
    config = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(config.replace('"depth"', '"layers"'))
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*layers"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(config.replace('"codebook_size": 32', '"codebook_size": 64'))
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors: does not fit its configuration: .*\[33, 16\]"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(config)
    (tmp_path / "tokenizer.safetensors").write_bytes((tmp_path / "tokenizer.safetensors").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors: no readable tokenizer weights"):
        load_tokenizer(tmp_path)


def test_patches_have_no_released_counterpart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patch is 2"):
        export_tokenizer(tiny("shared", patch=2, grid=4), tmp_path / "model.pt", tmp_path / "config.yaml")
    assert list(tmp_path.iterdir()) == []


RELEASED_KINDS = [
    (24, 1, 4096, 384),
    (16, 2, 16384, 256),
    (16, 4, 16384, 256),
    (16, 8, 16384, 256),
    (32, 2, 16384, 512),
]
SPELLINGS = {
    "plain": "{arch}",
    "EasyDict": "!!python/object/new:easydict.EasyDict {{dictitems: {arch}, state: {arch}}}",
    "object": "!!python/object:omegaconf.dictconfig.DictConfig {arch}",
    "own tag": "!EasyDict {arch}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("side", "depth", "rows", "size"), RELEASED_KINDS)
@pytest.mark.parametrize("shared_codebook", ["true", "false"])
def test_configs_of_the_released_kinds(
    tmp_path: Path, side: int, depth: int, rows: int, size: int, spelling: str, shared_codebook: str
) -> None:
    """As the authors' trainer writes them: a decay and a codebook size for each depth, tuples, foreign keys."""

    def each(value: float) -> str:
        return f"[{', '.join([str(value)] * depth)}]"

    shape = f"!!python/tuple [{side}, {side}, %d]"
    hparams = (
        f"{{bottleneck_type: rq, embed_dim: 256, n_embed: {each(rows)}, latent_shape: {shape % 256}, "
        f"code_shape: {shape % depth}, shared_codebook: {shared_codebook}, decay: {each(0.99)}, "
        "restart_unused_codes: true, loss_type: mse, latent_loss_weight: 0.25}"
    )
    ddconfig = (
        f"{{double_z: false, z_channels: 256, resolution: {size}, in_channels: 3, out_ch: 3, ch: 128, "
        f"ch_mult: [1, 1, 2, 2, 4], num_res_blocks: 2, attn_resolutions: [{side}], dropout: 0.00}}"
    )
    arch = f"{{type: rq-vae, code_hier: 1, checkpointing: true, hparams: {hparams}, ddconfig: {ddconfig}}}"
    (tmp_path / "config.yaml").write_text(
        "dataset: {type: imagenet}\narch: "
        + SPELLINGS[spelling].format(arch=arch)
        + "\noptimizer: {init_lr: 4.0e-05}\n"
    )
    content = read_released_yaml(tmp_path / "config.yaml")["arch"]
    config = RQVAEConfig.from_released(content["hparams"], content["ddconfig"])
    assert (config.image_size, config.code_shape, config.codebook_size) == ((size, size), (side, side, depth), rows)
    with torch.device("meta"):
        state = RQVAE(config).state_dict()
    books = [name for name in state if name.endswith(".weight") and name.startswith("quantizer")]
    assert books == [f"quantizer.codebooks.{d}.weight" for d in range(depth)]
    assert all(state[name].shape == (rows + 1, 256) for name in books)
    assert config.to_released()[0]["shared_codebook"] is (shared_codebook == "true")


def test_attention_counts_by_the_resolution_of_the_config() -> None:
    """As released for 24x24x1: trained at 384 px under `resolution: 256` and `attn_resolutions: [8]`, which no level
    of the encoder has; the middle alone attends."""
    hparams = {"embed_dim": 256, "n_embed": 4096, "latent_shape": [24, 24, 256], "code_shape": [24, 24, 1]}
    hparams |= {"shared_codebook": True, "decay": 0.99, "use_padding_idx": False, "masked_dropout": 0.0}
    ddconfig = {"double_z": False, "z_channels": 256, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    ddconfig |= {"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [8], "dropout": 0.0}
    config = RQVAEConfig.from_released(hparams, ddconfig)
    assert config.image_size == (384, 384)
    with torch.device("meta"):
        names = RQVAE(config).state_dict()
    assert {name.rpartition("attn")[0] for name in names if "attn" in name} == {"encoder.mid.", "decoder.mid."}


def test_weights_that_training_did_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.safetensors"
    path.write_bytes(b"weights")
    digest = weights_digest(str(path))
    done = Finished(step=1, files={path.name: CheckpointFile(bytes=7, sha256=digest)})
    (tmp_path / "done").write_bytes(done.to_json())
    assert weights_digest(str(path)) == digest
    path.write_bytes(b"weightz")
    with pytest.raises(ValueError, match=r"^[^\n]*tokenizer\.safetensors: its bytes are not those that training wrote"):
        weights_digest(str(path))
