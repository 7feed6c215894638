"""Plans: a stage's work cut into units, one unit a shard, written by streaming and only if absent.

A unit is a plain dict with at least `unit` (its number) so that it travels as JSON and through Ray unchanged. A plan
grows by parts, plan-0001.jsonl and so on, which append units or state earlier ones anew; no file of it ever changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

from data_specs import storage
from data_specs.digest import Identity, require_same
from data_specs.scratch import scratch_folder

Unit = dict[str, Any]


class Sample(NamedTuple):
    """One sample of a shard: `fields` maps an extension (png, cls, json, codes.npy) to its bytes; KEY has no dot."""

    key: str
    fields: dict[str, bytes]


class Dropped(NamedTuple):
    """Something offered that was not written. `kind` is "filtered" (a filter took it) or "rejected" (it failed).

    `environmental` marks rejects that depend on the machine (time, memory, crash).
    """

    key: str
    source: str
    reason: str
    kind: str = "rejected"
    environmental: bool = False


Outcome = Sample | Dropped


@dataclass(frozen=True)
class Plan:
    """A stored plan: header plus units; units are read anew on each iteration, so a plan of any size fits in memory.

    `digest` is that of the first part, which every receipt of the set carries; `identity` is that of the last.
    """

    set_uri: str
    digest: str
    identity: Identity
    num_units: int
    num_parts: int = 1

    def units(self) -> Iterator[Unit]:
        """Units in order, each as the last part that names it states it."""
        restated = self._restated()
        for part in range(self.num_parts):
            header, units = _read_part(self.set_uri, part)
            first = header.get("first", 0)
            yield from (restated.get(unit["unit"], unit) for unit in units if unit["unit"] >= first)

    def _restated(self) -> dict[int, Unit]:
        restated: dict[int, Unit] = {}
        for part in range(1, self.num_parts):
            header, units = _read_part(self.set_uri, part)
            if header["num_restated"]:
                restated |= {unit["unit"]: unit for unit in units if unit["unit"] < header["first"]}
        return restated


def write_plan(set_uri: str, digest: str, identity: Identity, units: Iterable[Unit]) -> Plan:
    """Streams units into SET/plan.jsonl, created only if absent: a plan that is there already wins, and is returned.

    Raises ValueError if the stored plan was made for something else.
    """
    return _write_part(set_uri, 0, {"digest": digest, "identity": identity}, units)


def extend_plan(plan: Plan, identity: Identity, units: Iterable[Unit]) -> Plan:
    """Streams units into the plan's next part: numbers from plan.num_units on are new, lower ones are stated anew.

    A part that another process wrote first wins, and the plan with it is returned; raises ValueError if that one was
    made for something else. A unit stated anew is done again only if its receipt has been removed before.
    """
    header = {"digest": plan.digest, "identity": identity, "first": plan.num_units}
    return _write_part(plan.set_uri, plan.num_parts, header, units)


def _write_part(set_uri: str, part: int, header: dict[str, Any], units: Iterable[Unit]) -> Plan:
    uri, first = _part_uri(set_uri, part), header.get("first", 0)
    with scratch_folder() as folder:
        body, whole = folder / "body", folder / "plan.jsonl"
        num_lines = num_restated = 0
        with body.open("w", encoding="utf-8") as file:
            for unit in units:
                file.write(_line(unit))
                num_lines += 1
                num_restated += unit["unit"] < first
        counts = {"num_units": first + num_lines - num_restated} | ({"num_restated": num_restated} if part else {})
        with whole.open("w", encoding="utf-8") as file, body.open(encoding="utf-8") as rest:
            file.write(_line({"format_version": 1} | header | counts))
            for block in iter(lambda: rest.read(1 << 20), ""):
                file.write(block)
        storage.create_from_file(whole, uri)
    plan = read_plan(set_uri)
    assert plan is not None, f"{set_uri}: the plan just written is not there"
    require_same(uri, plan.identity, header["identity"])
    return plan


def read_plan(set_uri: str) -> Plan | None:
    """The stored plan of a shard set with all its parts, or None where there is none."""
    plan = None
    for part in count():
        try:
            header, _ = _read_part(set_uri, part)
        except FileNotFoundError:
            return plan
        if plan and (header["digest"], header.get("first")) != (plan.digest, plan.num_units):
            raise ValueError(f"{_part_uri(set_uri, part)}: not a part of this plan; remove it")
        plan = Plan(
            set_uri, plan.digest if plan else header["digest"], header["identity"], header["num_units"], part + 1
        )
    raise AssertionError("unreachable")


def _part_uri(set_uri: str, part: int) -> str:
    return storage.join(set_uri, f"plan-{part:04d}.jsonl" if part else "plan.jsonl")


def _read_part(set_uri: str, part: int) -> tuple[dict[str, Any], Iterator[Unit]]:
    """(header, units) of one part of a plan."""
    uri = _part_uri(set_uri, part)
    lines = storage.read_lines(uri)
    try:
        header = json.loads(next(lines))
        if not {"digest", "identity", "num_units"} <= header.keys():
            raise ValueError("no header")
    except (StopIteration, ValueError, AttributeError):
        raise ValueError(f"{uri}: not a plan; remove the shard set and run the stage again") from None
    return header, map(json.loads, lines)


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n"
