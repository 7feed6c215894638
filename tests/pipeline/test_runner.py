"""The same work on real Ray: whatever the workers and whatever dies, the same bytes, and no unit done twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import command
import pytest
import ray
from namesakes import write_namesakes

from data_specs import receipts, storage
from data_specs.records import AnyUnit, Identity, RangeUnit, Receipt, Sample
from data_specs.spec import load_spec
from data_specs.units import write_plan
from data_specs.verify import verify_set
from pipeline.job import RENDER
from pipeline.runner import _WorkerPool, connect
from pipeline.running import run_plan
from pipeline.workers import Share, ShareDone, UnitsFailed, Workers, kept

TINY = Path(__file__).parent.parent / "tiny.yaml"
SPLITS = ("images/train", "images/val")


def manifests(root: Path) -> list[bytes]:
    """The bytes of both manifests."""
    return [(root / split / "manifest.json").read_bytes() for split in SPLITS]


def start_render(root: Path, folder: Path | None = None) -> command.Command:
    """`dnd render` by one worker of the session's Ray, in a process group of its own."""
    return command.start_dnd("render", TINY, "--root", root, "--workers", "1", cwd=folder)


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root rendered by one worker."""
    root = tmp_path_factory.mktemp("one")
    with kept(Workers(num_workers=1)) as same:
        RENDER.make(load_spec(TINY), str(root), same)
    return root


def test_two_workers_give_the_same_manifest_and_shards(undisturbed: Path, tmp_path: Path) -> None:
    RENDER.make(load_spec(TINY), str(tmp_path), Workers(num_workers=2))
    assert manifests(tmp_path) == manifests(undisturbed)
    assert [fault for split in SPLITS for fault in verify_set(str(tmp_path / split))] == []
    for tar in (undisturbed / "images/train").glob("*.tar"):
        assert (tmp_path / "images/train" / tar.name).read_bytes() == tar.read_bytes()


def test_a_killed_run_is_finished_by_the_next(undisturbed: Path, tmp_path: Path) -> None:
    run = start_render(tmp_path)
    _wait_for(tmp_path / "images/train/000000.json", run)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.end().returncode == -signal.SIGKILL
    first = storage.stat(str(tmp_path / "images/train/000000.json"))
    RENDER.make(load_spec(TINY), str(tmp_path), Workers(num_workers=1))
    assert storage.stat(str(tmp_path / "images/train/000000.json")) == first, "a unit with a receipt is not redone"
    assert manifests(tmp_path) == manifests(undisturbed)


def _wait_for(path: Path, run: command.Command) -> None:
    deadline = time.monotonic() + 400
    while not path.exists():
        assert run.poll() is None, "the run ended before its first receipt"
        assert time.monotonic() < deadline, "no receipt in time"
        time.sleep(0.05)


def test_a_changed_stage_is_refused_and_says_what_differs(undisturbed: Path) -> None:
    with pytest.raises(ValueError, match=r"render\.text\.margin was 1, is now 3"):
        RENDER.make(load_spec(TINY, ["render.text.margin=3"]), str(undisturbed), Workers())


def test_what_is_free_on_resume_is_not_refused(undisturbed: Path) -> None:
    before = manifests(undisturbed)
    RENDER.make(load_spec(TINY, ["train.steps=9", "sample.num=3"]), str(undisturbed), Workers(num_workers=2))
    assert manifests(undisturbed) == before


def test_two_jobs_on_one_root_end_in_one_valid_set(undisturbed: Path, tmp_path: Path) -> None:
    imported = write_namesakes(tmp_path / "home")
    runs = [start_render(tmp_path, imported.parent) for _ in range(2)]
    assert [run.end().returncode for run in runs] == [0, 0]
    assert not imported.exists(), "a worker imports from the working directory"
    assert manifests(tmp_path) == manifests(undisturbed)
    assert [fault for split in SPLITS for fault in verify_set(str(tmp_path / split)) if "litter" not in fault] == []


def test_workers_that_have_ended_a_plan_take_up_the_next_and_may_die_in_between(
    ray_session: None, tmp_path: Path
) -> None:
    def pid_of_a_plan(name: str, workers: Workers) -> int:
        root = str(tmp_path / name)
        plan = write_plan(root, "d" * 64, Identity(stage="test"), [RangeUnit(unit=0, first=0, count=1)])

        def setup() -> Callable[[AnyUnit], Receipt]:
            (tmp_path / "pid").write_text(str(os.getpid()))
            sample = Sample(name, {"txt": b"", "json": b"{}"})
            return lambda unit: receipts.commit(root, plan.digest, unit.unit, [sample])

        run_plan(plan, setup, workers, "images", "test")
        return int((tmp_path / "pid").read_text())

    with kept(Workers(num_workers=1)) as same:
        first, second = pid_of_a_plan("a", same), pid_of_a_plan("b", same)
        os.kill(second, signal.SIGKILL)
        third = pid_of_a_plan("c", same)
        with_more = pid_of_a_plan("d", same._replace(cpus=2.0))
    assert first == second != third and with_more not in (first, third)
    assert pid_of_a_plan("e", Workers(num_workers=1)) != with_more


def test_where_no_worker_can_start_the_run_ends(ray_session: None, tmp_path: Path) -> None:
    plan = write_plan(str(tmp_path), "d" * 64, Identity(stage="test"), [RangeUnit(unit=0, first=0, count=1)])

    def setup() -> Callable[[AnyUnit], Receipt]:
        raise ValueError("nothing to work with")

    with pytest.raises(UnitsFailed, match="no worker could start: ValueError: nothing to work with"):
        run_plan(plan, setup, Workers(num_workers=1), "images", "test")


@pytest.mark.long
def test_a_unit_that_hangs_is_made_elsewhere(ray_session: None, tmp_path: Path) -> None:
    """The first try of one unit sleeps for ten minutes; the run takes one, and nothing is there twice."""
    root, hung = str(tmp_path / "set"), tmp_path / "hung"
    units = [RangeUnit(unit=number, first=number, count=1) for number in range(12)]
    plan = write_plan(root, "d" * 64, Identity(stage="test"), units)

    def setup() -> Callable[[AnyUnit], Receipt]:
        def stage(unit: AnyUnit) -> Receipt:
            if unit.unit == 3 and not hung.exists():
                hung.touch()
                time.sleep(600)
            fields = {"txt": b"%d" % unit.unit, "json": b"{}"}
            return receipts.commit(root, plan.digest, unit.unit, [Sample(f"{unit.unit}", fields)])

        return stage

    started = time.monotonic()
    manifest = run_plan(plan, setup, Workers(num_workers=2), "images", "test")
    assert hung.exists() and time.monotonic() - started < 120
    assert manifest.totals.written == 12 and [fault for fault in verify_set(root) if "(litter" not in fault] == []


def test_parts_of_a_plan_make_the_same_set_and_whoever_ends_last_merges(undisturbed: Path, tmp_path: Path) -> None:
    spec, root = load_spec(TINY), str(tmp_path)
    with pytest.raises(ShareDone, match="part 2/2 is done; images/train, images/val will be whole when all parts are"):
        RENDER.make(spec, root, Workers(num_workers=1, share=Share(2, 2)))
    assert not (tmp_path / SPLITS[0] / "manifest.json").exists()
    numbers = [int(path.stem) for path in (tmp_path / SPLITS[0]).glob("??????.json")]
    assert numbers and all(number % 2 == 1 for number in numbers)
    last = RENDER.make(spec, root, Workers(num_workers=1, share=Share(1, 2)))
    assert all(manifest.complete for manifest in last.values())
    assert manifests(tmp_path) == manifests(undisturbed)
    assert [fault for split in SPLITS for fault in verify_set(str(tmp_path / split))] == []


def test_units_of_one_tar_are_of_one_part_and_every_unit_of_one() -> None:
    tars = ["a", "a", None, "b", "b", "c", None, "a"]
    units = [RangeUnit(unit=n, first=n, count=1, affinity=tar) for n, tar in enumerate(tars)]
    shares = [list(Share(number, 2).of(units)) for number in (1, 2)]
    assert sorted(unit.unit for share in shares for unit in share) == list(range(len(units)))
    homes = [{unit.affinity for unit in share} - {None} for share in shares]
    assert homes == [{"a", "c"}, {"b"}]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--part 2/8"):
        Share.parse(text)


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 30 s Ray raises a bare Exception, which no list of errors holds."""

    def in_vain(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could\nhappen")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", in_vain)
    with pytest.raises(ConnectionError, match="this machine did not start: The current node timed out during startup"):
        connect(Workers(address=None))


def test_types_of_ray_before_2_49_take_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.actor.ActorHandle, "__class_getitem__", None, raising=False)
    assert _WorkerPool(lambda: str, Workers()).actors == {}
