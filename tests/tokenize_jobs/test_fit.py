"""Training of the tokenizer: resumed, on several ranks, from another tokenizer, on several sets, with every loss."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from image_sets import make_root, tiny_spec, write_images
from ray_cluster import free_ports
from safetensors.torch import load_file, save_file

from data_specs import open_shards
from data_specs.ahead import in_threads
from data_specs.digest import claim
from data_specs.metrics import read_rows
from data_specs.records import Identity
from tokenize_jobs.batches import draw, read_view, split_batch, stacked
from tokenize_jobs.checkpoint import verify_training
from tokenize_jobs.device import to_device
from tokenize_jobs.losses import LPIPS
from tokenize_jobs.networks import config_of, initial_model
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.task import TokenizerTask
from tokenize_jobs.training import fit, train_tokenizer
from tokenize_jobs.weights import load_tokenizer, save_tokenizer

GAN = ("tokenizer.gan_start=10", "tokenizer.ema=0.9", "tokenizer.schedule=cosine", "tokenizer.warmup_steps=5")
LOSSES = ("mse", "rec", "commitment", "gen", "disc", "adaptive_weight", "usage", "perplexity", "restarts")


def rows(root: str) -> list[dict]:
    return [row for row in read_rows(f"{root}/tokenizer/metrics.jsonl") if "mse" in row]


def curve(root: str) -> list[dict]:
    return [{"step": row["step"]} | {name: row[name] for name in LOSSES if name in row} for row in rows(root)]


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ---- the data ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("batch", "world", "micro"), [(8, 1, None), (7, 2, None), (7, 2, 2), (7, 2, 1), (256, 8, 3)])
def test_every_rank_makes_as_many_micro_batches_and_every_image_is_taken_once(
    batch: int, world: int, micro: int | None
) -> None:
    split = split_batch(batch, world, micro)
    assert len({len(micros) for micros in split}) == 1
    assert sorted(i for micros in split for micro_batch in micros for i in micro_batch) == list(range(batch))
    sizes = [len(micro_batch) for micros in split for micro_batch in micros]
    assert min(sizes) > 0 and (micro is None or max(sizes) <= micro or batch % world)


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 3: 4 ranks"):
        split_batch(3, 4, None)


def test_sets_are_mixed_by_weight(tmp_path: Path) -> None:
    write_images(str(tmp_path / "many"), [40])
    write_images(str(tmp_path / "few"), [3], ink="red")
    sets = [open_shards(str(tmp_path / name)) for name in ("many", "few")]
    places = [place for step in range(200) for place in draw(sets, [1.0, 3.0], 8, 0, step)]
    assert np.mean([place.shard_set for place in places]) == pytest.approx(0.75, abs=0.03)
    assert {place.image for place in places if place.shard_set == 0} == set(range(40))
    images = in_threads((partial(read_view, sets, place, 32) for place in places), threads=2, ahead=5)
    micros = stacked(images, (3, 5))
    assert [micro.shape for micro in micros] == [(3, 32, 32, 3), (5, 32, 32, 3)]
    for place, image in zip(places, np.concatenate(micros), strict=False):
        assert np.array_equal(image, sets[place.shard_set][place.image]["image"])


def test_calls_are_made_ahead_in_order_and_no_further() -> None:
    taken = list[int]()

    def calls() -> Iterator[Callable[[], int]]:
        for number in range(10):
            taken.append(number)
            yield partial(abs, -number)

    results = in_threads(calls(), threads=2, ahead=3)
    assert next(results) == 0 and taken == [0, 1, 2, 3]
    assert list(results) == list(range(1, 10))


# ---- resume and ranks ----------------------------------------------------------------------------------------------
@pytest.mark.system
def test_killed_and_resumed_gives_the_undisturbed_losses_and_weights(tmp_path: Path) -> None:
    """10 steps, a SIGKILL, 10 steps: discriminator, moving average, accumulation, schedule and all."""
    lengths = ("tokenizer.steps=20", "tokenizer.checkpoint_every=10", "tokenizer.gan_start=5")
    spec = tiny_spec(*GAN, *lengths, "tokenizer.micro_batch_size=4", "tokenizer.restart_unused=true")
    whole, killed = make_root(tmp_path / "whole"), make_root(tmp_path / "killed")
    fit(spec, whole)
    Path(killed, "spec.yaml").write_text(spec.to_yaml())
    command = [sys.executable, "-m", "tokenize_jobs.fit", "--root", killed]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    while process.poll() is None and not any(row["step"] >= 12 for row in rows(killed)):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    fit(spec, killed)
    assert curve(killed) == curve(whole) and [row["step"] for row in rows(whole)] == list(range(1, 21))
    assert "disc" not in rows(whole)[4] and rows(whole)[5]["disc"] > 0
    one, other = (load_file(Path(root, "tokenizer/tokenizer.safetensors")) for root in (whole, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    before = Path(whole, "tokenizer/tokenizer.safetensors").stat().st_mtime_ns
    fit(spec, whole)
    assert Path(whole, "tokenizer/tokenizer.safetensors").stat().st_mtime_ns == before


@pytest.mark.system
def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    """30 steps of 7 images: one rank has 4 of them, the other 3, and nothing hangs; with discriminator and restarts.

    The ranks' sums differ in the last bits of float32 (2e-7), ten steps keep that within 5e-7 with the kernels of SSE,
    AVX2 and AVX512, and the discriminator's gradients, which begin near 0, lose two digits more. Then some vector lies
    between two rows by less than that, or the sign of a gradient near 0 turns in Adam, and the runs are two draws of
    one process: from there on they agree in what they reach.
    """
    spec = tiny_spec(*GAN, "tokenizer.steps=30", "tokenizer.batch_size=7")
    roots = [make_root(tmp_path / name) for name in ("one", "two")]
    fit(spec, roots[0])
    ranks.run(2, fit, spec, roots[1])
    one, two = (curve(root) for root in roots)
    assert len(one) == len(two) == 30 and one[-1]["mse"] < one[0]["mse"] / 2
    assert [row["mse"] for row in two[:10]] == pytest.approx([row["mse"] for row in one[:10]], rel=2e-5)
    for name in ("gen", "disc", "adaptive_weight"):  # the discriminator normalizes over both ranks' images
        assert two[10][name] == pytest.approx(one[10][name], rel=1e-3)
    late = [np.mean([row["mse"] for row in run[20:]]) for run in (one, two)]
    assert late[1] == pytest.approx(late[0], rel=5e-2)
    restarts = [[row["restarts"] for row in run[:10]] for run in (one, two)]
    assert restarts[0] == restarts[1] and sum(map(sum, restarts[0])) > 0


LAUNCHERS = {
    "torchrun": ("--nproc_per_node", "2", "--master_port", "{port}", "-m"),
    "deepspeed": ("--num_gpus", "2", "--master_port", "{port}", "--module"),
}


@pytest.mark.system
@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.long)])
def test_two_ranks_by_each_launcher(tmp_path: Path, launcher: str) -> None:
    spec = tiny_spec("tokenizer.steps=3", "tokenizer.batch_size=5")
    alone, root = make_root(tmp_path / "alone"), make_root(tmp_path / "two")
    fit(spec, alone)
    Path(root, "spec.yaml").write_text(spec.to_yaml())
    options = [option.format(port=free_ports(1)[0]) for option in LAUNCHERS[launcher]]
    command = [Path(sys.executable).with_name(launcher), *options, "tokenize_jobs.fit", "--root", root]
    command += ["--local_rank=0"] * (launcher == "torchrun")  # as DeepSpeed's adds, which takes three processes more
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # deepspeed starts `python`
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert [row["mse"] for row in curve(root)] == pytest.approx([row["mse"] for row in curve(alone)], rel=1e-4)


def test_a_mistake_on_many_ranks_is_said_and_ends_them(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    with pytest.raises(ValueError, match="batch_size is 1: 2 ranks need at least an image each"):
        train_tokenizer(tiny_spec("tokenizer.batch_size=1"), root, ranks=2)


# ---- what it starts from -------------------------------------------------------------------------------------------
def test_fine_tuning_starts_from_the_named_tokenizer(tmp_path: Path) -> None:
    spec, root = tiny_spec("tokenizer.steps=1"), make_root(tmp_path)
    torch.manual_seed(5)
    other = RQVAE(config_of(tiny_spec("tokenizer.embed_dim=24"))).train()  # an architecture of its own
    stored = np.stack([item["image"] for item in open_shards(f"{root}/images/val")])
    images = to_device(stored, torch.device("cpu"))
    other(images)
    save_tokenizer(other, tmp_path / "imported")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"init_from imported: its codes are"):
        fit(tiny_spec("tokenizer.init_from=imported", "shape.codebook_size=64", "tokenizer.learning_rate=5"), root)
    assert files(tmp_path) == before  # a refusal binds nobody
    options = ("tokenizer.init_from=imported", "tokenizer.learning_rate=1e-9")
    fit(tiny_spec("tokenizer.steps=1", *options), root)
    tuned = load_tokenizer(tmp_path / "tokenizer")
    assert tuned.config.embed_dim == 24 and tuned.config.decay == spec.tokenizer.decay
    torch.testing.assert_close(tuned.encoder.conv_in.weight, other.encoder.conv_in.weight, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"init_from imported: its codes are \[4, 4, 2\] of 32 rows, the spec's"):
        initial_model(tiny_spec("tokenizer.init_from=imported", "shape.codebook_size=64"), root)
    shutil.rmtree(tmp_path / "imported")
    fit(tiny_spec("tokenizer.steps=2", *options), root)  # the checkpoint knows all that is needed
    assert load_tokenizer(tmp_path / "tokenizer").config.embed_dim == 24


def test_another_starting_point_or_mixture_is_another_run(tmp_path: Path) -> None:
    spec, root = tiny_spec("tokenizer.steps=1"), make_root(tmp_path)
    fit(spec, root)
    with pytest.raises(ValueError, match=r"tokenizer\.images\.0\.weight was 1\.0, is now"):
        fit(tiny_spec("tokenizer.steps=1", "tokenizer.images=[{manifest: images/train, weight: 2}]"), root)
    with pytest.raises(ValueError, match=r"absent/tokenizer\.safetensors: no weights to start from"):
        fit(tiny_spec("tokenizer.init_from=absent"), root)
    fit(tiny_spec("tokenizer.steps=3"), root)  # the rate is constant: a longer run is the same run, gone on
    assert [row["step"] for row in rows(root)] == [1, 2, 3]


def test_a_set_without_images_is_refused_and_binds_nothing(tmp_path: Path) -> None:
    write_images(f"{tmp_path}/images/train", [0])
    with pytest.raises(ValueError, match=r"images/train.*: the shard set is empty: there is nothing to learn from"):
        fit(tiny_spec("tokenizer.steps=1"), str(tmp_path))
    assert not (tmp_path / "tokenizer/stage.json").exists()


def test_an_imported_tokenizer_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, root = tiny_spec(), make_root(tmp_path)
    save_tokenizer(RQVAE(config_of(spec)), tmp_path / "tokenizer")
    before = (tmp_path / "tokenizer/tokenizer.safetensors").read_bytes()
    fit(spec, root)
    assert "imported, not trained" in capsys.readouterr().out
    assert (tmp_path / "tokenizer/tokenizer.safetensors").read_bytes() == before


# ---- losses and health ---------------------------------------------------------------------------------------------
def test_lpips_is_part_of_the_loss_and_never_pretended(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    torch.manual_seed(0)
    lpips = LPIPS()
    for head in lpips.heads:
        head.weight.abs_()
    save_file(lpips.state_dict(), tmp_path / "lpips.safetensors")
    short = ("tokenizer.steps=2", "tokenizer.gan_start=0")
    fit(tiny_spec("tokenizer.lpips_weights=lpips.safetensors", *short), root)
    assert all(row["lpips"] > 0 and row["adaptive_weight"] > 0 for row in rows(root))
    (tmp_path / "lpips.safetensors").rename(tmp_path / "moved.safetensors")
    fit(tiny_spec("tokenizer.lpips_weights=moved.safetensors", *short), root)  # the same weights at another place
    save_file({name: tensor * 2 for name, tensor in lpips.state_dict().items()}, tmp_path / "lpips.safetensors")
    with pytest.raises(ValueError, match=r"made for something else: inputs\.lpips_weights"):
        fit(tiny_spec("tokenizer.lpips_weights=lpips.safetensors", *short), root)
    with pytest.raises((ValueError, FileNotFoundError), match="absent"):
        fit(tiny_spec("tokenizer.lpips_weights=absent"), make_root(tmp_path / "other"))
    assert not (tmp_path / "other/tokenizer").exists()  # nothing that would refuse the corrected run


def test_a_collapsed_codebook_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_root(tmp_path)
    few = ("shape.codebook_size=2048", "tokenizer.restart_unused=false", "tokenizer.steps=6", "tokenizer.batch_size=32")
    with caplog.at_level(logging.WARNING):
        fit(tiny_spec(*few), root)
    warnings = [record.message for record in caplog.records if "collapsed" in record.message]
    assert len(warnings) == 1 and "depth 1" in warnings[0]
    assert rows(root)[-1]["collapsed"] and max(rows(root)[-1]["perplexity"]) < 60


def test_rows_are_means_over_their_steps(tmp_path: Path) -> None:
    roots = [make_root(tmp_path / name) for name in ("each", "fourth")]
    for root, every in zip(roots, (1, 4), strict=True):
        fit(tiny_spec("tokenizer.steps=10", f"tokenizer.log_every={every}", "tokenizer.checkpoint_every=3"), root)
    each, fourth = (rows(root) for root in roots)
    assert [row["step"] for row in fourth] == [4, 8, 10]
    for row, steps in zip(fourth, (each[:4], each[4:8], each[8:]), strict=True):
        assert row["mse"] == pytest.approx(np.mean([step["mse"] for step in steps]), rel=1e-6)
        assert list(row["restarts"]) == np.sum([step["restarts"] for step in steps], 0).tolist()


def test_bfloat16_trains(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    fit(tiny_spec("tokenizer.dtype=bfloat16", "tokenizer.steps=30", "tokenizer.gan_start=5"), root)
    assert rows(root)[-1]["mse"] < rows(root)[0]["mse"] / 2
    assert load_tokenizer(tmp_path / "tokenizer").quant_conv.weight.dtype == torch.float32


@pytest.mark.long
def test_compiled_training_gives_the_plain_losses(tmp_path: Path) -> None:
    roots = [make_root(tmp_path / name) for name in ("plain", "compiled")]
    for root, value in zip(roots, ("false", "true"), strict=True):
        fit(tiny_spec("tokenizer.steps=10", f"tokenizer.compile={value}"), root)
    plain, compiled = ([row["mse"] for row in rows(root)] for root in roots)
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_the_identity_claims_the_folder(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    claim(f"{root}/tokenizer", Identity(stage="tokenizer", spec={"shape": "another"}))
    with pytest.raises(ValueError, match="was made for something else"):
        fit(tiny_spec(), root)


# ---- what must never happen ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 12])
def test_a_rate_that_ruins_the_tokenizer_leaves_none(tmp_path: Path, steps: int) -> None:
    root = make_root(tmp_path)
    options = (f"tokenizer.steps={steps}", "tokenizer.checkpoint_every=1", "tokenizer.max_skips=2", "tokenizer.ema=0.9")
    with pytest.raises(ValueError, match="not finite"):
        fit(tiny_spec("tokenizer.learning_rate=1e30", *options), root)
    assert not list((tmp_path / "tokenizer").glob("*.safetensors")) and not (tmp_path / "tokenizer/done").exists()
    assert not list(verify_training(f"{root}/tokenizer"))  # what there is of checkpoints is whole and finite


def test_a_step_that_is_left_out_changes_nothing(tmp_path: Path) -> None:
    """Neither weights nor codebooks nor the discriminator's running means, which the forward pass has changed."""
    root = make_root(tmp_path)
    task = TokenizerTask(tiny_spec("tokenizer.gan_start=0"), root, Ranks())
    task.begin(0, 40)
    assert task.step(0.002, math.inf).applied
    before = {kind: tensor.clone() for kind, tensor in task._named().items() if tensor.is_floating_point()}
    assert not task.step(0.002, 0.0).applied  # no loss is as small as that
    for kind, tensor in before.items():
        assert torch.equal(tensor, task._named()[kind]), kind
    assert task.step(0.002, math.inf).applied
    assert not torch.equal(before["model", "quant_conv.weight"], task._named()["model", "quant_conv.weight"])
    task.close()
