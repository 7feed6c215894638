"""Who gets which unit: every unit once, tars on one node, stragglers a second time."""

from __future__ import annotations

from collections import deque

from data_specs.records import RangeUnit
from pipeline.waiting import AHEAD, Try, UnitQueue, straggler


def unit(number: int, affinity: str | None = None) -> RangeUnit:
    return RangeUnit(unit=number, first=0, count=1, affinity=affinity)


def test_units_of_one_affinity_go_to_one_node_until_nothing_else_is_left() -> None:
    waiting = UnitQueue(unit(n, "ab"[n // 4]) for n in range(8))
    taken = {node: [waiting.take(node).unit for _ in range(3)] for node in ("x", "y")}
    assert taken == {"x": [0, 1, 2], "y": [4, 5, 6]}
    assert [waiting.take("x").unit, waiting.take("x").unit] == [3, 7], "an idle worker takes another's"
    assert not waiting


def test_units_without_affinity_come_in_order_and_each_once() -> None:
    waiting = UnitQueue(unit(n) for n in range(AHEAD + 10))
    assert [waiting.take("xy"[n % 2]).unit for n in range(AHEAD + 10)] == list(range(AHEAD + 10))
    waiting.put_back(unit(3))
    assert waiting.take("x") == unit(3) and not waiting


def test_what_was_at_home_on_a_lost_node_finds_another() -> None:
    waiting = UnitQueue(unit(n, "a") for n in range(3))
    waiting.take("x")
    waiting.forget_node("x")
    waiting.take("y")
    assert waiting.node_of == {"a": "y"}


def test_a_unit_far_slower_than_others_is_named_once() -> None:
    durations, slow = deque([1.0, 2.0, 3.0]), Try(0, unit(7), 0.0)
    assert straggler([slow, Try(1, unit(8), 90.0)], durations, 100.0) == slow
    assert straggler([slow], durations, 20.0) is None, "at least half a minute"
    assert straggler([slow, Try(1, unit(7), 99.0)], durations, 100.0) is None, "it runs twice already"
    assert straggler([slow], deque([90.0] * 5), 100.0) is None and straggler([slow], deque([1.0]), 100.0) is None
