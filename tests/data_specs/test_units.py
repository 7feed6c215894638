"""Plans: written once, by streaming, read anew on each iteration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_specs import storage
from data_specs.units import extend_plan, read_plan, write_plan


def test_the_first_plan_wins(tmp_path: Path) -> None:
    root = str(tmp_path)
    first = write_plan(root, "d", {"seed": 1}, ({"unit": i, "name": f"ü{i}\u2028"} for i in range(3)))
    second = write_plan(root, "d", {"seed": 1}, [{"unit": 0}])
    assert first == second == read_plan(root) and second.num_units == 3
    assert list(second.units()) == list(second.units()) == [{"unit": i, "name": f"ü{i}\u2028"} for i in range(3)]


def test_a_plan_for_something_else_is_refused(tmp_path: Path) -> None:
    write_plan(str(tmp_path), "d1", {"seed": 1}, [])
    with pytest.raises(ValueError, match=r"seed was 1, is now 2.*another --root"):
        write_plan(str(tmp_path), "d2", {"seed": 2}, [])


def test_no_plan_and_no_plan_at_all(tmp_path: Path) -> None:
    assert read_plan(str(tmp_path)) is None
    for text in ("", "not json\n", "[]\n", '{"digest": 1}\n'):
        storage.write_text(str(tmp_path / "plan.jsonl"), text)
        with pytest.raises(ValueError, match="not a plan"):
            read_plan(str(tmp_path))


def test_units_that_raise_leave_no_plan(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_plan(str(tmp_path / "set"), "d", {}, ({"unit": 1 // i} for i in (1, 0)))
    assert not (tmp_path / "set").exists()


SCALE = """
import json, sys, time
from data_specs.units import write_plan
num_units, started = int(sys.argv[2]), time.time()
units = ({"unit": i, "documents": [f"s3://bucket/{i}/{j}.pdf" for j in range(64)]} for i in range(num_units))
plan = write_plan(sys.argv[1], "d", {}, units)
assert plan.num_units == num_units == sum(1 for _ in plan.units())
# this program's own peak; ru_maxrss would be the parent's, inherited over exec
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**20
print(json.dumps({"seconds": time.time() - started, "gib": peak}))
"""


def _measure_plan(folder: Path, num_units: int) -> dict[str, float]:
    """Seconds and GiB of writing a plan of units of 64 documents and reading it again."""
    command = [sys.executable, "-c", SCALE, str(folder), str(num_units)]
    measured: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(measured)
    return measured


def test_plans_stream(tmp_path: Path) -> None:
    assert _measure_plan(tmp_path / "a", 3_000)["gib"] < _measure_plan(tmp_path / "b", 10)["gib"] + 0.01


@pytest.mark.long
def test_a_plan_of_ten_million_documents(tmp_path: Path) -> None:
    measured = _measure_plan(tmp_path, 10_000_000 // 64)
    assert measured["seconds"] < 120 and measured["gib"] < 1


def test_a_plan_grows_by_parts_and_states_units_anew(tmp_path: Path, s3_root: str) -> None:
    for root in (str(tmp_path), f"{s3_root}/set"):
        plan = write_plan(root, "d", {"seed": 1}, ({"unit": i, "of": 0} for i in range(3)))
        grown = extend_plan(plan, {"seed": 2}, ({"unit": i, "of": 1} for i in (1, 3, 4)))
        again = extend_plan(grown, {"seed": 3}, ({"unit": i, "of": 2} for i in (3, 5)))
        assert again == read_plan(root) and (again.num_units, again.num_parts, again.digest) == (6, 3, "d")
        assert [(u["unit"], u["of"]) for u in again.units()] == [(0, 0), (1, 1), (2, 0), (3, 2), (4, 1), (5, 2)]
        assert extend_plan(plan, {"seed": 3}, [{"unit": 3}]) == again, "the part that is there wins"
        with pytest.raises(ValueError, match="seed was 3, is now 9"):
            extend_plan(plan, {"seed": 9}, [])
