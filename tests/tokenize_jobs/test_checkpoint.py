"""Checkpoints damaged in every way, cut off at every rename, on a full disk: training finds the newest whole one."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import dnd
from safetensors.torch import save_file

from data_specs import storage
from data_specs.records import CheckpointState, Finished
from tokenize_jobs import checkpoint
from tokenize_jobs.checkpoint import CheckpointWriter, StoredTensors, find_whole, verify_training
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.tensors import NotFiniteError, write_safetensors

FORK = multiprocessing.get_context("fork")
NAME = "rank_00000_of_00001.safetensors"


def save(folder: str, step: int, keep_last: int = 2, keep_every: int | None = None, value: float | None = None) -> None:
    """A checkpoint of two small tensors, all of whose numbers are the step's."""
    writer = CheckpointWriter(folder, Ranks(), keep_last, keep_every)
    numbers = torch.full((1000,), float(step) if value is None else value)
    tensors = {"weight/a/0": numbers, "ema/a/0": torch.full((10,), 1.0 * step)}
    writer.start(CheckpointState(step=step, position=8 * step, world=1, files={}), tensors)
    writer.commit()


def found(folder: str) -> int | None:
    """The step that training goes on from; its tensors are those that were saved."""
    whole = find_whole(folder, Ranks())
    if whole is None:
        return None
    uri, state = whole
    stored = StoredTensors(uri, state.files)
    assert stored.flat("weight", "a").tolist() == [state.step] * 1000
    assert stored.read("ema", "a", 3, 4).tolist() == [state.step] * 4
    assert state.position == 8 * state.step
    return state.step


# ---- damage --------------------------------------------------------------------------------------------------------
def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = [zeros, flipped_byte, cut_off, emptied, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [NAME, "state.json"])
def test_training_goes_on_from_the_newest_whole_checkpoint_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], name: str
) -> None:
    folder = str(tmp_path)
    for step in (1, 2, 3):
        save(folder, step, keep_last=3)
    damage(tmp_path / "step_00000003" / name)
    assert found(folder) == 2
    said = capsys.readouterr().err
    assert f"warning: goes on from {folder}/step_00000002" in said and "step_00000003" in said
    for step in (1, 2):
        zeros(tmp_path / f"step_0000000{step}" / NAME)
    with pytest.raises(ValueError, match="no checkpoint is whole"):
        found(folder)


@pytest.mark.parametrize("latest", [None, b"", bytes(14), b"step_00000009\n", b"\xff\xfe", b"../../x\n"])
def test_whatever_latest_holds_a_whole_checkpoint_is_found(tmp_path: Path, latest: bytes | None) -> None:
    for step in (1, 2):
        save(str(tmp_path), step)
    (tmp_path / "latest").unlink()
    if latest is not None:
        (tmp_path / "latest").write_bytes(latest)
    assert found(str(tmp_path)) == 2
    faults = list(verify_training(str(tmp_path)))
    assert len(faults) == (latest is not None)
    assert all(("latest: names no checkpoint" in f) != ("step_00000009: its state.json is lost" in f) for f in faults)


@pytest.mark.parametrize(
    "tensors", [{"weight/a/0": torch.tensor(1.0)}, {"weight/a/0": torch.ones(2, 2)}, {"weight": torch.ones(1)}]
)
def test_a_file_of_other_tensors_is_none_of_a_checkpoint(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / NAME)
    with pytest.raises(ValueError, match=rf"^[^\n]*{NAME}: not a file of a checkpoint"):
        StoredTensors(str(tmp_path), [NAME])


def test_latest_names_where_to_go_on_from(tmp_path: Path) -> None:
    for step in (1, 2):
        save(str(tmp_path), step)
    (tmp_path / "latest").write_text("step_00000001\n")
    assert found(str(tmp_path)) == 1


def test_the_first_step_is_begun_with_only_where_nothing_was_ever_whole(tmp_path: Path) -> None:
    assert found(str(tmp_path)) is None
    (tmp_path / "step_00000001").mkdir()
    (tmp_path / "step_00000001" / NAME).write_bytes(b"cut off in the very first checkpoint")
    assert found(str(tmp_path)) is None
    (tmp_path / "latest").write_bytes(b"")
    with pytest.raises(ValueError, match=r"state\.json is lost"):
        found(str(tmp_path))


# ---- kills ---------------------------------------------------------------------------------------------------------
def kill_at(event: int, folder: str, step: int) -> None:
    """Saves a checkpoint in a process that ends before or after its `event`-th rename, link or removal."""
    count = 0

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object, **options: object) -> None:
            nonlocal count
            for _ in range(2):
                if count == event:
                    os._exit(9)
                count += 1
                if count % 2:
                    call(*arguments, **options)

        return wrapped

    for name in ("replace", "rename", "link", "unlink", "remove", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    save(folder, step, keep_last=1)
    os._exit(0)


def test_a_kill_before_or_after_any_rename_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Both the last and the new one may be found, never none; the next save works and leaves nothing else behind."""
    outcomes = set()
    for event in range(100):
        folder = str(tmp_path / str(event))
        save(folder, 1, keep_last=1)
        process = FORK.Process(target=kill_at, args=(event, folder, 2))
        process.start()
        process.join(60)
        outcomes.add(found(folder))
        save(folder, 3, keep_last=1)
        assert found(folder) == 3 and checkpoint.list_steps(folder) == [3]
        if process.exitcode == 0:
            break
    assert process.exitcode == 0 and event > 10 and outcomes == {1, 2}


# ---- what cannot be written ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_no_checkpoint_and_the_last_good_one_stays(
    tmp_path: Path, number: float
) -> None:
    folder = str(tmp_path)
    save(folder, 1, keep_last=1)
    with pytest.raises(NotFiniteError, match="weight/a/0 holds numbers that are not finite"):
        save(folder, 2, keep_last=1, value=number)
    assert found(folder) == 1 and (tmp_path / "latest").read_text() == "step_00000001\n"


def test_whatever_the_writing_thread_dies_of_the_last_checkpoint_stays(tmp_path: Path) -> None:
    folder = str(tmp_path)
    save(folder, 1, keep_last=1)
    writer = CheckpointWriter(folder, Ranks(), 1, None)
    state = CheckpointState(step=2, position=16, world=1, files={})
    writer.start(state, {"weight/a/0": torch.zeros(3, dtype=torch.complex64)})  # KeyError
    with pytest.raises(RuntimeError, match=r"step_00000002: rank 0 could not write the checkpoint \(KeyError"):
        writer.commit()
    assert found(folder) == 1


def fill_up(folder: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        save(folder, 2, keep_last=1)
    except ValueError as error:
        os._exit(2 if "make room, then run again" in str(error) else 3)
    os._exit(0)


def test_a_full_disk_ends_it_with_what_to_do_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    folder = str(tmp_path)
    save(folder, 1, keep_last=1)
    process = FORK.Process(target=fill_up, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 2 and found(folder) == 1


# ---- which stay ----------------------------------------------------------------------------------------------------
def test_the_last_and_every_nth_stay(tmp_path: Path) -> None:
    for step in range(1, 9):
        save(str(tmp_path), step, keep_last=2, keep_every=3)
    assert checkpoint.list_steps(str(tmp_path)) == [3, 6, 7, 8]


def test_a_checkpoint_on_s3_falls_back_as_well(s3_root: str, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(s3_root, step)
    storage.write(f"{s3_root}/step_00000002/{NAME}", b"something else")
    storage.delete(f"{s3_root}/latest")
    assert found(s3_root) == 1
    assert "14 bytes, state.json says" in capsys.readouterr().err


# ---- dnd verify ----------------------------------------------------------------------------------------------------
def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for step in (1, 2, 3):
        save(folder, step, keep_last=3)
    file = write_safetensors(tmp_path / "model.safetensors", {"a": torch.ones(100)})
    done = Finished(step=3, files={"model.safetensors": file}, weights=0.5)
    storage.write(f"{folder}/done", done.to_json())
    assert list(verify_training(folder)) == []
    flipped_byte(tmp_path / "step_00000001" / NAME)
    (tmp_path / "step_00000002/state.json").write_text("{}")
    flipped_byte(tmp_path / "model.safetensors")
    one, two, three = sorted(verify_training(folder))
    assert "model.safetensors: its bytes are not those that training wrote" in one
    assert f"step_00000001/{NAME}: its bytes are not those that were written" in two
    assert "step_00000002/state.json: not a valid checkpointstate" in three


def test_verify_reads_imported_weights(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "good.safetensors")
    assert list(verify_training(str(tmp_path))) == []
    save_file({"a": torch.tensor([1.0, torch.nan])}, tmp_path / "nan.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"short")
    nan, short = verify_training(str(tmp_path))
    assert nan.endswith("nan.safetensors: a holds numbers that are not finite")
    assert "short.safetensors: cannot be read as safetensors" in short
    save_file({name: torch.tensor([torch.inf]) for name in "abc"}, tmp_path / "nan.safetensors")
    assert next(verify_training(str(tmp_path))).endswith(": a and 2 more tensors hold numbers that are not finite")


def test_dnd_verify_covers_both_trainings(tmp_path: Path) -> None:
    save(f"{tmp_path}/tokenizer", 1)
    save(f"{tmp_path}/transformer", 2)
    whole = dnd("verify", tmp_path)
    assert whole.returncode == 0 and "0 shard sets, 2 trainings, 0 faults" in whole.stdout, whole
    flipped_byte(tmp_path / "transformer/step_00000002" / NAME)
    damaged = dnd("verify", tmp_path)
    assert damaged.returncode == 1 and f"step_00000002/{NAME}: its bytes are not" in damaged.stdout
