"""The configuration DeepSpeed gets: the files of infra/deepspeed, what a user adds, and what is the spec's to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from code_sets import NO_DROPOUT, make_root, tiny_spec
from golden import bfloat16_pieces, fixed_steps, start_with_other_classes

from tokenize_jobs.device import multiplies_bfloat16, pick_device
from tokenize_jobs.ranks import Ranks, common_dtype
from train.engine import compile_layers, compiles, deepspeed_config, read_user_config
from train.model import DnDTransformer, config_of


def test_a_user_adds_to_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    added = {"zero_optimization": {"reduce_bucket_size": 1000}, "comms_logger": {"enabled": True}}
    path.write_text(json.dumps(added | {"train_batch_size": 8}))  # the spec's, but equal
    config = deepspeed_config(tiny_spec(), 2, read_user_config(str(path)))
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["stage"] == 1
    assert config["comms_logger"] == {"enabled": True}
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (4, 1)


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ({"train_batch_size": 16}, "train_batch_size"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage"),
        ({"bf16": {"enabled": True}}, "bf16.enabled"),
        ({"bf16": True}, "bf16"),
        ({"optimizer": {"type": "Adam"}}, "optimizer"),
    ],
)
def test_what_contradicts_the_spec_is_refused_by_key(user: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"--deepspeed_config: {key} is the spec's to say"):
        deepspeed_config(tiny_spec(), 2, user)


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "zero_optimization.offload_param"),
        ({"zero_optimization": {"stage3": 1}}, "zero_optimization.stage3"),
        ({"elasticity": {"enabled": True}}, "elasticity"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_key(user: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"--deepspeed_config: {key} is not a key that this training can honour"):
        deepspeed_config(tiny_spec(), 2, user)


@pytest.mark.parametrize("text", ["[]", "{", None])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "mine.json"
    if text:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.json"):
        read_user_config(str(path))


DTYPES = ("auto", "float32", "bfloat16")
CONFIGURATIONS = {
    "plain": (),
    "bfloat16": ("train.dtype=bfloat16",),
    "bfloat16 at stage 3": ("train.dtype=bfloat16", "train.zero_stage=3"),
    "optimizer on the CPU": ("train.offload_optimizer=true",),
    "half recomputed": ("train.activation_checkpointing=0.5",),
    "half recomputed at stage 3": ("train.activation_checkpointing=0.5", "train.zero_stage=3"),
}
COMPILED = {"compiled": ("train.compile=true",), "compiled at stage 2": ("train.compile=true", "train.zero_stage=2")}


def test_the_arithmetic_is_what_the_device_multiplies_unless_the_spec_says() -> None:
    here = "bfloat16" if multiplies_bfloat16(pick_device()) else "float32"
    found = {dtype: common_dtype(tiny_spec(f"train.dtype={dtype}").train.dtype, Ranks()) for dtype in DTYPES}
    assert found == {"auto": here, "float32": "float32", "bfloat16": "bfloat16"}


def losses_of(root: Path, overrides: tuple[str, ...]) -> list[float]:
    ranks.run(1, fixed_steps, str(root), *overrides)
    return json.loads((root / "losses.json").read_text())


def compare_configurations(root: Path, configurations: dict[str, tuple[str, ...]], *common: str) -> None:
    """All make the steps of plain float32, and none makes a step of a gradient that is not finite."""
    wanted = losses_of(root, common)
    assert wanted[2] == wanted[3] < wanted[1] < wanted[0]
    for name, overrides in configurations.items():
        tolerance = 0.01 if "bfloat16" in name else 1e-4
        assert losses_of(root, (*common, *overrides)) == pytest.approx(wanted, abs=tolerance), name


@pytest.mark.system
def test_engines_of_every_kind_make_the_same_steps(tmp_path: Path) -> None:
    compare_configurations(tmp_path, CONFIGURATIONS)


@pytest.mark.long
def test_compiled_engines_make_the_same_steps(tmp_path: Path) -> None:
    compare_configurations(tmp_path, COMPILED, *NO_DROPOUT)  # compiled code draws other numbers


def test_stage_3_is_not_compiled() -> None:
    with pytest.raises(ValueError, match="compile works at zero_stage 0 to 2"):
        tiny_spec("train.compile=true", "train.zero_stage=3")
    at_three, at_two = (tiny_spec(f"train.zero_stage={stage}") for stage in (3, 2))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [compiles(at_three, gpu), compiles(at_two, gpu), compiles(at_two, cpu)] == [False, True, False]


def test_all_layers_are_one_graph_without_a_break() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = DnDTransformer(config_of(tiny_spec()))
    compile_layers(model, backend="aot_eager")
    codes = torch.zeros(2, 16, 2, dtype=torch.int64)
    model(codes, codes[:, 0, 0], return_loss=True).mean().backward()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_the_ranks_read_the_users_file(tmp_path: Path) -> None:
    from train.job import train

    user = tmp_path / "mine.json"
    user.write_text('{"zero_optimization": {"stage": 2}}')
    spec = tiny_spec("train.steps=2")
    with pytest.raises(ValueError, match=r"zero_optimization.stage is the spec's"):
        train(spec, make_root(tmp_path / "run"), deepspeed_config=str(user))


@pytest.mark.parametrize(
    ("stage", "offload", "optimizer"),
    [
        (1, "false", "BF16_Optimizer"),
        (2, "false", "DeepSpeedZeroOptimizer"),
        (1, "true", "DeepSpeedZeroOptimizer"),
        (2, "true", "DeepSpeedZeroOptimizer"),
    ],
)
def test_gradients_of_bfloat16_add_up_in_float32(tmp_path: Path, stage: int, offload: str, optimizer: str) -> None:
    ranks.run(1, bfloat16_pieces, str(tmp_path), f"train.zero_stage={stage}", f"train.offload_optimizer={offload}")
    assert (tmp_path / "optimizer").read_text() == optimizer
    config = deepspeed_config(tiny_spec("train.dtype=bfloat16", f"train.zero_stage={stage}"), 1)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"} and config["communication_data_type"] == "fp32"


def test_fine_tuning_may_have_other_classes(tmp_path: Path) -> None:
    ranks.run(1, start_with_other_classes, str(tmp_path))
    assert json.loads((tmp_path / "differs.json").read_text()) == ["cls_embedding.embedding_table.weight"]
