"""Units made in this process, without Ray: the same set, failures tried again and recorded, no worker started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sets import render_here, text_spec, write_texts

from data_specs import storage
from data_specs.lease import holder_of
from data_specs.receipts import commit
from data_specs.records import AnyUnit, Identity, LeaseHolder, Manifest, RangeUnit, Receipt, Sample
from data_specs.units import write_plan
from data_specs.verify import verify_set
from pipeline.running import TRIES, run_plan
from pipeline.stages import require_writable
from pipeline.workers import Share, UnitsFailed, Workers

HERE = Workers(num_workers=0)
WITHOUT_RAY = """import sys
import infra.cli
sys.modules["ray"] = None
infra.cli.main()"""


def failing(folder: Path, times: dict[int, int]) -> Callable[[Workers], Manifest]:
    """Runs a plan of six units here, of which some fail so many times first."""
    units = [RangeUnit(unit=number, first=number, count=1) for number in range(6)]
    plan = write_plan(str(folder), "d" * 64, Identity(stage="test"), units)
    tries = dict.fromkeys(range(6), 0)

    def setup() -> Callable[[AnyUnit], Receipt]:
        def make(unit: AnyUnit) -> Receipt:
            tries[unit.unit] += 1
            if tries[unit.unit] <= times.get(unit.unit, 0):
                raise ValueError(f"try {tries[unit.unit]}")
            return commit(str(folder), plan.digest, unit.unit, [Sample(f"{unit.unit}", {"txt": b"", "json": b"{}"})])

        return make

    return lambda workers: run_plan(plan, setup, workers, "images", "test set")


def test_without_ray_the_command_makes_the_same_set(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts/a.jsonl", [f"doc{number}" for number in range(12)])
    spec, roots = text_spec(tmp_path / "texts"), [tmp_path / "one", tmp_path / "other"]
    render_here(spec, roots[0])
    (tmp_path / "spec.yaml").write_text(spec.to_yaml())
    words = ["render", str(tmp_path / "spec.yaml"), "--root", str(roots[1]), "--workers", "0"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_RAY, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "images/train: " in done.stdout, done.stderr
    for split in ("train", "val"):
        one, other = (root / "images" / split / "manifest.json" for root in roots)
        assert one.read_bytes() == other.read_bytes()
        assert list(verify_set(str(other.parent))) == []


def test_a_unit_is_tried_again_and_what_fails_for_good_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(UnitsFailed, match=r"test set: 1 units failed \(unit 4: ValueError: try 3\)"):
        failing(tmp_path, {2: TRIES - 1, 4: TRIES})(HERE)
    assert sorted(int(path.stem) for path in tmp_path.glob("??????.json")) == [0, 1, 2, 3, 5]
    assert (tmp_path / "000004.failed.json").is_file()
    assert failing(tmp_path, {})(HERE).totals.written == 6
    assert not (tmp_path / "progress.json").exists() and not (tmp_path / "000004.failed.json").exists()


def test_it_ends_when_as_many_have_failed_as_are_bearable(tmp_path: Path) -> None:
    with pytest.raises(UnitsFailed, match="2 units failed"):
        failing(tmp_path, dict.fromkeys(range(6), TRIES))(HERE._replace(max_failures=2))
    assert len(list(tmp_path.glob("*.failed.json"))) == 2


def test_a_part_makes_its_share(tmp_path: Path) -> None:
    manifest = failing(tmp_path, {})(HERE._replace(share=Share(1, 2)))
    assert not manifest.complete and len(list(tmp_path.glob("??????.json"))) == 3


def test_a_dead_lease_is_gone_before_the_ranks_of_a_training_come(tmp_path: Path) -> None:
    dead = LeaseHolder(host="elsewhere", pid=1, pid_space="", command="dnd train", since=0, beat=0)
    storage.write(f"{tmp_path}/transformer/lease/000003.json", dead.to_json())
    require_writable(str(tmp_path), "transformer", "train")
    assert holder_of(f"{tmp_path}/transformer") is None
