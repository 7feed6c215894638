"""Plans: a stage's work cut into units, one per shard, written by streaming and only if absent.

A plan grows by parts, plan-0001.jsonl and so on, which append units or state earlier ones anew; no file of it ever
changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from data_specs import storage
from data_specs.digest import require_same
from data_specs.records import AnyUnit, Identity, PlanHeader, parse_unit, unit_line
from data_specs.scratch import scratch_folder

UnitOfKind = TypeVar("UnitOfKind", bound=AnyUnit)


@dataclass(frozen=True)
class Plan:
    """A stored plan: header plus units; units are read anew on each iteration, so a plan of any size fits in memory.

    `digest` is that of the first part, which every receipt of the set carries; `identity` and `places`, where the
    inputs lay, are those of the last. `first_places` has the first place of each part: a root may have moved between.
    """

    set_uri: str
    digest: str
    identity: Identity
    num_units: int
    num_parts: int = 1
    places: tuple[str, ...] = ()
    first_places: tuple[str, ...] = ()

    def units(self) -> Iterator[AnyUnit]:
        """Yield the units in order, each as the last part that names it states it."""
        restated = self._restated()
        for part in range(self.num_parts):
            header, units = _read_part(self.set_uri, part)
            yield from (restated.get(unit.unit, unit) for unit in units if unit.unit >= header.first)

    def units_of(self, kind: type[UnitOfKind]) -> Iterator[UnitOfKind]:
        """Yield units as `units` does.

        Raises:
            ValueError: one is not of this kind: the plan is of another set.
        """
        for unit in self.units():
            if not isinstance(unit, kind):
                fault = f"holds units of the kind {unit.kind!r}, which do not belong to this set"
                raise ValueError(f"{_part_uri(self.set_uri, 0)}: {fault}; remove the shard set and run the stage again")
            yield unit

    def _restated(self) -> dict[int, AnyUnit]:
        restated: dict[int, AnyUnit] = {}
        for part in range(1, self.num_parts):
            header, units = _read_part(self.set_uri, part)
            if header.num_restated:
                restated |= {unit.unit: unit for unit in units if unit.unit < header.first}
        return restated


def write_plan(
    set_uri: str, digest: str, identity: Identity, units: Iterable[AnyUnit], places: tuple[str, ...] = ()
) -> Plan:
    """Stream units into SET/plan.jsonl, created only if absent: a plan that is there already wins, and is returned.

    Raises:
        ValueError: the stored plan was made for something else.
    """
    return _write_part(set_uri, 0, PlanHeader(digest=digest, identity=identity, num_units=0, places=places), units)


def extend_plan(plan: Plan, identity: Identity, units: Iterable[AnyUnit], places: tuple[str, ...] = ()) -> Plan:
    """Stream units into the plan's next part: numbers from plan.num_units on are new, lower ones are stated anew.

    A part that another process wrote first wins, and the plan with it is returned. A unit stated anew is done again
    only if its receipt has been removed before.

    Raises:
        ValueError: the part that is there was made for something else.
    """
    first = plan.num_units
    header = PlanHeader(digest=plan.digest, identity=identity, num_units=first, first=first, places=places)
    return _write_part(plan.set_uri, plan.num_parts, header, units)


def _write_part(set_uri: str, part: int, header: PlanHeader, units: Iterable[AnyUnit]) -> Plan:
    uri = _part_uri(set_uri, part)
    with scratch_folder() as folder:
        num_lines = num_restated = 0
        digest = hashlib.sha256()
        with (folder / "body").open("wb") as file:
            for unit in units:
                line = unit_line(unit)
                file.write(line)
                digest.update(line)
                num_lines += 1
                num_restated += unit.unit < header.first
        counts = {"num_units": header.first + num_lines - num_restated, "num_restated": num_restated}
        header = header.model_copy(update=counts | {"units_sha256": digest.hexdigest()})
        with (folder / "plan.jsonl").open("wb") as file, (folder / "body").open("rb") as body:
            file.write(header.to_json())
            for block in iter(lambda: body.read(1 << 20), b""):
                file.write(block)
        storage.create(uri, folder / "plan.jsonl")
    plan = read_plan(set_uri)
    assert plan is not None, f"{set_uri}: the plan just written is not there"
    require_same(uri, plan.identity, header.identity)
    return plan


def read_plan(set_uri: str) -> Plan | None:
    """Return the stored plan of a shard set with all its parts, or None where there is none.

    Raises:
        ValueError: a file of it is not a plan, or not of this one.
    """
    plan = None
    for part in count():
        try:
            header, _ = _read_part(set_uri, part)
        except FileNotFoundError:
            return plan
        if plan and (header.digest, header.first) != (plan.digest, plan.num_units):
            raise ValueError(f"{_part_uri(set_uri, part)}: not a part of this plan; remove it")
        digest = plan.digest if plan else header.digest
        first_places = (*(plan.first_places if plan else ()), *header.places[:1])
        plan = Plan(set_uri, digest, header.identity, header.num_units, part + 1, header.places, first_places)
    raise AssertionError("unreachable")


def require_plan(set_uri: str) -> Plan:
    """Return the stored plan of a shard set.

    Raises:
        ValueError: there is none, or as `read_plan`.
    """
    plan = read_plan(set_uri)
    if plan is None:
        raise ValueError(f"{set_uri}: plan.jsonl is lost; run the stage again that made the set")
    return plan


def _part_uri(set_uri: str, part: int) -> str:
    return storage.join(set_uri, f"plan-{part:04d}.jsonl" if part else "plan.jsonl")


def _read_part(set_uri: str, part: int) -> tuple[PlanHeader, Iterator[AnyUnit]]:
    """(header, units) of one part of a plan."""
    uri = _part_uri(set_uri, part)
    lines = _lines(uri)
    header = PlanHeader.parse(next(lines, b""), uri, "remove the shard set and run the stage again")
    return header, _units(uri, header, lines)


def _units(uri: str, header: PlanHeader, lines: Iterator[bytes]) -> Iterator[AnyUnit]:
    number = 0
    digest = hashlib.sha256()
    for number, line in enumerate(lines, 1):
        digest.update(line)
        yield parse_unit(line, f"{uri} line {number + 1}")
    if number != (promised := header.num_units - header.first + header.num_restated):
        raise ValueError(f"{uri}: holds {number} units, its first line says {promised}; remove the shard set")
    if header.units_sha256 not in (None, digest.hexdigest()):
        raise ValueError(f"{uri}: its units are not those that were planned; restore it, or remove the shard set")


def _lines(uri: str) -> Iterator[bytes]:
    with storage.open_stream(uri) as stream:
        yield from stream
