"""Training that is killed, or goes on with other ranks and another ZeRO stage, is the training that was not."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
import ranks
import torch
from code_sets import NO_DROPOUT, make_root, tiny_spec, write_codes
from golden import EPSILON, golden_batch, golden_spec, golden_steps
from safetensors import safe_open
from test_model import load_golden

from data_specs import storage
from data_specs.metrics import read_rows
from tokenize_jobs import checkpoint
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.tensors import write_safetensors
from train import order
from train.engine import parameter_groups
from train.weights import CONFIG, WEIGHTS

EVERY_20 = ("train.checkpoint_every=20", "train.validate_every=1000", "train.keep_last=3")
EVERY_PAIR = [(before, after) for before in range(4) for after in range(4) if (before, after) != (1, 3)]
long = pytest.mark.long


def stage(number: int) -> str:
    return f"train.zero_stage={number}"


def logged(root: str) -> list[dict]:
    return [row for row in read_rows(f"{root}/transformer/metrics.jsonl") if "bits_per_code" in row]


def losses(root: str) -> list[float]:
    return [row["bits_per_code"] for row in logged(root)]


def copy(root: str, name: str) -> str:
    return str(shutil.copytree(root, Path(root).parent / name))


def killed_behind_step_20(root: str, *overrides: str) -> None:
    """Trains on two ranks and kills both with SIGKILL, once the checkpoint of step 20 is whole and training went on."""
    processes = ranks.start(2, ranks.train, root, *overrides, "train.steps=100000")
    deadline = time.monotonic() + 180
    latest = Path(root, "transformer/latest")
    while not latest.exists() or len(losses(root)) < 23:
        assert time.monotonic() < deadline and all(process.is_alive() for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.kill()
        process.join()
    if latest.read_text() != "step_00000020\n":  # killed late
        latest.write_text("step_00000020\n")


@pytest.mark.system
@pytest.mark.parametrize(("before", "after"), [(1, 3), *(pytest.param(*pair, marks=long) for pair in EVERY_PAIR)])
def test_40_steps_are_20_and_20_on_any_ranks_and_stages(tmp_path: Path, before: int, after: int) -> None:
    common = (*NO_DROPOUT, *EVERY_20)
    whole, killed, alone = (make_root(tmp_path / name) for name in ("whole", "killed", "alone"))
    ranks.run(2, ranks.train, whole, *common, stage(before), "train.steps=40")
    killed_behind_step_20(killed, *common, stage(before))
    fewer = copy(killed, "fewer")
    ranks.run(2, ranks.train, killed, *common, stage(before), "train.steps=40")
    ranks.run(1, ranks.train, fewer, *common, stage(after), "train.steps=40")
    ranks.run(1, ranks.train, alone, *common, stage(after), "train.steps=20")
    ranks.run(2, ranks.train, alone, *common, stage(before), "train.steps=40")

    wanted = ranks.consumed(whole, 2, range(40))
    assert wanted == order.positions_to_samples(tiny_spec().seed, torch.arange(320).numpy(), 37).tolist()
    first, second = wanted[:160], wanted[160:]
    assert ranks.consumed(killed, 2, range(40)) == wanted
    assert (ranks.consumed(fewer, 2, range(20)), ranks.consumed(fewer, 1, range(20, 40))) == (first, second)
    assert (ranks.consumed(alone, 1, range(20)), ranks.consumed(alone, 2, range(20, 40))) == (first, second)

    undisturbed = losses(whole)
    assert len(undisturbed) == 40 and undisturbed[-1] < undisturbed[0] - 0.3
    assert losses(killed) == undisturbed  # the same ranks and stage: to the last bit
    for root in (fewer, alone):
        assert losses(root) == pytest.approx(undisturbed, abs=2e-4)


# ---- a kill in the middle of a write -------------------------------------------------------------------------------
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=long)])
def test_a_kill_while_a_checkpoint_is_written_leaves_a_whole_one(tmp_path: Path, kills: int) -> None:
    root, moments = make_root(tmp_path), random.Random(1)
    options = ("train.checkpoint_every=1", "train.steps=100000", "train.validate_every=100000", "transformer.width=128")
    seen = reached = unfinished = 0
    for _ in range(kills):
        processes = ranks.start(1, ranks.train, root, *options)
        deadline = time.monotonic() + 180
        while not Path(root, f"transformer/step_{reached + 2:08d}").exists():
            assert time.monotonic() < deadline and processes[0].is_alive()
            time.sleep(0.002)
        time.sleep(moments.random() * 0.3)
        processes[0].kill()
        processes[0].join()
        step = whole_checkpoint(root)
        assert step > reached
        reached, seen = step, seen + 1
        unfinished += any(step > reached for step in checkpoint.list_steps(f"{root}/transformer"))
    assert seen == kills and unfinished  # at least one kill hit a write


def whole_checkpoint(root: str) -> int:
    """The step of the newest whole checkpoint, every element of which has been read."""
    found = checkpoint.find_whole(f"{root}/transformer", Ranks())
    assert found is not None
    uri, state = found
    stored = checkpoint.StoredTensors(uri, state.files)
    for kind, name in stored.runs:
        last, piece = stored.runs[kind, name][-1]
        assert stored.read(kind, name, 0, last + piece.get_shape()[0]).isfinite().all()
    return state.step


# ---- where checkpoints lie, and which stay ------------------------------------------------------------------------
def test_checkpoints_on_s3_resume_and_the_last_and_every_nth_stay(s3_root: str) -> None:
    write_codes(f"{s3_root}/codes/train", [20, 17])
    write_codes(f"{s3_root}/codes/val", [9])
    options = ("train.checkpoint_every=3", "train.keep_last=1", "train.keep_every=6", "train.validate_every=100")
    ranks.run(1, ranks.train_plainly, s3_root, *options, "train.steps=8")
    storage.delete(f"{s3_root}/transformer/done")
    ranks.run(1, ranks.train_plainly, s3_root, *options, "train.steps=10")
    assert checkpoint.list_steps(f"{s3_root}/transformer") == [6, 10]
    assert [row["step"] for row in logged(s3_root)] == list(range(1, 11))
    assert [row["position"] for row in logged(s3_root)] == list(range(8, 88, 8))


# ---- steps that are skipped ----------------------------------------------------------------------------------------
def test_by_default_batches_of_noise_are_skipped_counted_and_gone_back_from(tmp_path: Path) -> None:
    root, samples = str(tmp_path), order.positions_to_samples(tiny_spec().seed, torch.arange(880).numpy(), 880)
    noise = {*samples[560:568].tolist(), *samples[720:736].tolist()}  # the batches of steps 71, 91 and 92
    write_codes(f"{root}/codes/train", [440, 440], noise=noise)
    write_codes(f"{root}/codes/val", [9])
    ranks.run(1, ranks.train_plainly, root, "train.max_skips=2", "train.steps=110", "train.validate_every=1000")
    rows = logged(root)
    assert [row["step"] for row in rows] == list(range(1, 111))  # steps gone back from are written once
    assert [row["skipped_steps"] for row in rows] == [0] * 70 + [1] * 18 + [3] * 22
    assert [row["position"] - 8 * row["step"] for row in rows] == [0] * 88 + [32] * 22  # data left out


# ---- golden gradients ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_two_ranks_update_golden_weights_as_plain_pytorch_does(shared: Path, tmp_path: Path, number: int) -> None:
    golden = shared / "reference/transformer_2head_cfg.safetensors"
    model, tensors = load_golden(golden)
    (tmp_path / "start").mkdir()
    write_safetensors(tmp_path / "start" / WEIGHTS, model.state_dict())
    write_safetensors(tmp_path / "start/ema.safetensors", model.state_dict())
    (tmp_path / "start" / CONFIG).write_text(json.dumps(vars(model.config)))
    ranks.run(2, golden_steps, str(tmp_path), str(golden), number)

    spec = golden_spec(model.config)
    groups = parameter_groups(model, spec.train.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=spec.train.learning_rate, betas=spec.train.betas, eps=EPSILON)
    codes, classes = golden_batch(tensors)
    averages = {name: p.detach().clone() for name, p in model.named_parameters()}
    steepest = 0.0
    for step in range(3):
        optimizer.zero_grad()
        model(codes, classes, return_loss=True).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.train.clip)
        steepest = max(steepest, *(p.grad.abs().max().item() for p in model.parameters()))
        optimizer.step()
        for name, parameter in model.named_parameters():
            averages[name].lerp_(parameter.detach(), 1 - (1 + step) / (10 + step))  # it starts short
    # Kernels of any order of summation leave a float32 gradient within 64 roundings of the steepest (seen: 70 in the
    # third step, 30 in the first); AdamW multiplies it by lr / epsilon at most, three times.
    bound = 3 * spec.train.learning_rate / EPSILON * 64 * 2**-24 * steepest
    uri = f"{tmp_path}/out/step_00000003"
    stored = checkpoint.StoredTensors(uri, checkpoint.read_state(uri).files)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plain = {name: p.detach() for name, p in model.named_parameters()}
    torch.testing.assert_close(stored.whole("weight", shapes), plain, atol=bound, rtol=1e-6)
    torch.testing.assert_close(stored.whole("ema", shapes), averages, atol=bound, rtol=1e-6)
    with safe_open(golden, "pt") as file:  # and it went somewhere
        moved = (file.get_tensor("state_dict.norm.0.weight") - plain["norm.0.weight"]).abs().max()
    assert moved > spec.train.learning_rate
