"""Plans: a stage's work cut into units, one unit a shard, written once as plan.jsonl by streaming.

A unit is a plain dict with at least `unit` (its number) so that it travels as JSON and through Ray unchanged.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_specs import storage
from data_specs.digest import require_same

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
    """A stored plan: header plus units; units are read anew on each iteration, so a plan of any size fits in memory."""

    set_uri: str
    digest: str
    identity: dict[str, Any]
    num_units: int

    def units(self) -> Iterator[Unit]:
        """Units in order."""
        lines = storage.read_lines(storage.join(self.set_uri, "plan.jsonl"))
        next(lines)
        for line in lines:
            yield json.loads(line)


def write_plan(set_uri: str, digest: str, identity: dict[str, Any], units: Iterable[Unit]) -> Plan:
    """Streams units into SET/plan.jsonl, created only if absent: a plan that is there already wins, and is returned.

    Raises ValueError if the stored plan was made for something else.
    """
    with tempfile.TemporaryDirectory(prefix="dnd-plan-") as folder:
        body, whole = Path(folder, "body"), Path(folder, "plan.jsonl")
        with body.open("w", encoding="utf-8") as file:
            num_units = sum(1 for unit in units if file.write(_line(unit)))
        header = {"format_version": 1, "digest": digest, "num_units": num_units, "identity": identity}
        with whole.open("w", encoding="utf-8") as file, body.open(encoding="utf-8") as rest:
            file.write(_line(header))
            for block in iter(lambda: rest.read(1 << 20), ""):
                file.write(block)
        storage.create_from_file(whole, storage.join(set_uri, "plan.jsonl"))
    plan = read_plan(set_uri)
    assert plan is not None, f"{set_uri}: the plan just written is not there"
    require_same(f"{set_uri}/plan.jsonl", plan.identity, identity)
    return plan


def read_plan(set_uri: str) -> Plan | None:
    """The stored plan of a shard set, or None where there is none."""
    try:
        header = json.loads(next(storage.read_lines(storage.join(set_uri, "plan.jsonl"))))
        return Plan(set_uri, header["digest"], header["identity"], header["num_units"])
    except FileNotFoundError:
        return None
    except (StopIteration, ValueError, KeyError, TypeError):
        raise ValueError(f"{set_uri}/plan.jsonl: not a plan; remove the shard set and run the stage again") from None


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n"
