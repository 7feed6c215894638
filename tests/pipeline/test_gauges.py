"""A job's counters and gauges at Ray's Prometheus endpoint, and the Grafana board that draws them."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from data_specs.receipts import commit
from data_specs.records import AnyUnit, Identity, RangeUnit, Receipt, Sample
from data_specs.units import write_plan
from pipeline.runner import COUNTERS, GAUGES
from pipeline.running import run_plan
from pipeline.workers import Workers

BOARD = Path(__file__).resolve().parents[2] / "infra/ray/grafana.json"
PATIENCE = 120.0  # seconds; Ray's workers report every ten


def read_metrics() -> dict[tuple[str, str], float]:
    """{(name, set): value} of this project's metrics at the endpoint of the node."""
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    found = re.findall(r'^ray_(dnd_\w+)\{[^}]*\bset="([^"]*)"[^}]*\} (\S+)$', text, re.M)
    return {(name, set_name): float(value) for name, set_name, value in found}


def test_the_endpoint_tells_units_samples_bytes_and_retries(ray_session: None, tmp_path: Path) -> None:
    set_uri, failed = str(tmp_path / "set"), tmp_path / "failed"
    units = [RangeUnit(unit=number, first=3 * number, count=3) for number in range(2)]
    plan = write_plan(set_uri, "d" * 64, Identity(stage="test"), units)

    def setup() -> Callable[[AnyUnit], Receipt]:
        def stage(unit: AnyUnit) -> Receipt:
            if unit.unit == 1 and not failed.exists():
                failed.touch()
                raise OSError("no space left")
            names = [f"{3 * unit.unit + number:08d}" for number in range(3)]
            return commit(
                set_uri, plan.digest, unit.unit, [Sample(name, {"txt": b"x", "json": b"{}"}) for name in names]
            )

        return stage

    manifest = run_plan(plan, setup, Workers(num_workers=1), "images", "test gauges/train")
    deadline, told = time.monotonic() + PATIENCE, dict[tuple[str, str], float]()
    while ("dnd_units_total", "gauges/train") not in told and time.monotonic() < deadline:
        told = read_metrics()
    own = {name: value for (name, set_name), value in told.items() if set_name == "gauges/train"}
    assert own["dnd_units_total"] == 2 and own["dnd_samples_total"] == 6 and own["dnd_retries_total"] == 1
    assert own["dnd_bytes_total"] == manifest.totals.bytes > 0
    assert own["dnd_units_left"] == own["dnd_units_running"] == own["dnd_workers"] == 0


def test_the_board_draws_every_metric_and_no_other() -> None:
    board = json.loads(BOARD.read_text())
    expressions = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    wanted = {f"ray_dnd_{name}_total" for name in COUNTERS} | {f"ray_dnd_{name}" for name in GAUGES}
    assert set(re.findall(r"ray_dnd_\w+", expressions)) == wanted
    places = [tuple(panel["gridPos"].values()) for panel in board["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in board["panels"]})
