"""Plans: written once, by streaming, read anew on each iteration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_specs import storage
from data_specs.records import Document, FileInfo, Identity, RangeUnit, Reason, SourceUnit, Span, unit_line
from data_specs.sources import TextSource
from data_specs.units import extend_plan, read_plan, write_plan
from data_specs.verify import verify_set

DIGEST = "d" * 64


def identity(seed: int = 1) -> Identity:
    return Identity(stage="test", seed=seed)


def number(unit: int, count: int = 1) -> RangeUnit:
    return RangeUnit(unit=unit, first=unit, count=count)


def passages(unit: int) -> SourceUnit:
    files = (FileInfo(f"/ü{unit}\u2028{chr(0xDCFF) * unit}.jsonl", 10, "e"),)
    documents = (
        Document("a\u2028b", Span(0, 3, 4)),
        Document("c", Span(0, None, None), 0, Span(0, 7, 2), Reason.NO_CLASS, "x"),
    )
    return SourceUnit(
        unit=unit, source=TextSource(kind="text", uri="/x"), files=files, documents=documents, affinity=files[0].uri
    )


def test_the_first_plan_wins(tmp_path: Path) -> None:
    root = str(tmp_path)
    first = write_plan(root, DIGEST, identity(), map(passages, range(3)))
    assert b"\\udcff" in (tmp_path / "plan.jsonl").read_bytes(), "a file's name may be any bytes"
    second = write_plan(root, DIGEST, identity(), [number(0)])
    assert first == second == read_plan(root) and second.num_units == 3
    assert list(second.units()) == list(second.units()) == [passages(unit) for unit in range(3)]


def test_a_plan_for_something_else_is_refused(tmp_path: Path) -> None:
    write_plan(str(tmp_path), DIGEST, identity(1), [])
    with pytest.raises(ValueError, match=r"seed was 1, is now 2.*another --root"):
        write_plan(str(tmp_path), DIGEST, identity(2), [])


def test_no_plan_and_no_plan_at_all(tmp_path: Path) -> None:
    assert read_plan(str(tmp_path)) is None
    for text in ("", "not json\n", "[]\n", '{"digest": 1}\n', "\udcff\n", "[" * 300):
        storage.write(str(tmp_path / "plan.jsonl"), text.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"plan.jsonl: not a valid planheader \(.*\); remove the shard set"):
            read_plan(str(tmp_path))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 300,
        b'{"kind": "range", "unit": NaN, "first": 0, "count": 1}',
        b'{"kind": "range", "unit": 0, "first": -1, "count": 1}',
        b'{"kind": "other", "unit": 0}',
        b'{"kind": "shard", "unit": 0, "split": "train", "shard": "../x.tar", "sha256": null}',
    ],
)
def test_a_damaged_unit_is_one_line_that_names_file_and_line(tmp_path: Path, line: bytes) -> None:
    plan = write_plan(str(tmp_path), DIGEST, identity(), [number(0)])
    path = tmp_path / "plan.jsonl"
    path.write_bytes(path.read_bytes().splitlines()[0] + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"^[^\n]*plan\.jsonl line 2: not a valid unit [^\n]*$"):
        list(plan.units())


def test_units_that_raise_leave_no_plan(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_plan(str(tmp_path / "set"), DIGEST, identity(), (number(1 // i) for i in (1, 0)))
    assert not (tmp_path / "set").exists()


SCALE = """
import json, sys, time
from data_specs.records import Document, FileInfo, Identity, SourceUnit, Span
from data_specs.sources import PdfSource
from data_specs.units import write_plan
num_units, started = int(sys.argv[2]), time.time()
source, files = PdfSource(kind="pdf", uri="s3://bucket"), (FileInfo("s3://bucket/a.tar", 1, "e"),)
documents = tuple(Document(f"{j}.pdf", Span(0, j, 9)) for j in range(64))
units = (SourceUnit(unit=i, source=source, files=files, documents=documents) for i in range(num_units))
plan = write_plan(sys.argv[1], "d" * 64, Identity(stage="test"), units)
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
        plan = write_plan(root, DIGEST, identity(1), (number(unit, 0) for unit in range(3)))
        grown = extend_plan(plan, identity(2), (number(unit, 1) for unit in (1, 3, 4)))
        again = extend_plan(grown, identity(3), (number(unit, 2) for unit in (3, 5)))
        assert again == read_plan(root) and (again.num_units, again.num_parts, again.digest) == (6, 3, DIGEST)
        counts = [(unit.unit, unit.count) for unit in again.units() if isinstance(unit, RangeUnit)]
        assert counts == [(0, 0), (1, 1), (2, 0), (3, 2), (4, 1), (5, 2)]
        assert extend_plan(plan, identity(3), [number(3)]) == again, "the part that is there wins"
        with pytest.raises(ValueError, match="seed was 3, is now 9"):
            extend_plan(plan, identity(9), [])


def test_units_that_were_changed_afterwards_are_refused_also_in_a_part(tmp_path: Path) -> None:
    plan = extend_plan(write_plan(str(tmp_path), DIGEST, identity(), map(number, range(3))), identity(2), [number(3)])
    assert len(list(plan.units())) == 4
    for name, others in (("plan-0001.jsonl", [number(3, 2)]), ("plan.jsonl", [number(0), number(1, 2), number(2)])):
        path = tmp_path / name
        header = path.read_bytes().splitlines(keepends=True)[0]
        path.write_bytes(header + b"".join(map(unit_line, others)))
        with pytest.raises(ValueError, match=rf"{name}: its units are not those that were planned; restore it"):
            list(plan.units())
        assert any(f"{name}: its units are not" in fault for fault in verify_set(str(tmp_path)))


def test_plans_of_before_say_nothing_of_their_units_bytes(tmp_path: Path) -> None:
    plan = write_plan(str(tmp_path), DIGEST, identity(), [number(0)])
    path = tmp_path / "plan.jsonl"
    header, unit = path.read_text().splitlines()
    old = {key: value for key, value in json.loads(header).items() if key != "units_sha256"}
    path.write_text(f"{json.dumps(old)}\n{unit}\n")
    assert read_plan(str(tmp_path)) == plan and list(plan.units()) == [number(0)]
