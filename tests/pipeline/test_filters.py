"""Filters stand in one place: each key of the spec is one filter, with what it takes and how it lets all pass."""

from __future__ import annotations

import pytest

from data_specs.records import Reason
from data_specs.sections import Filters
from data_specs.spec import load_spec
from pipeline.filters import FILTERS, KeptHashes, Observation, taken_by, without_filters

ALL_ON = Filters(min_ink=0.1, near_duplicates=3, scripts=["LATIN"], scanned="drop", untrusted="drop")


def test_every_key_of_the_spec_is_one_filter() -> None:
    assert [one.key for one in FILTERS] == sorted(Filters.model_fields, key=[one.key for one in FILTERS].index)


@pytest.mark.parametrize(
    ("seen", "taken"),
    [
        (Observation(pictured=0.8), (Reason.SCANNED, "80% under one picture")),
        (Observation(trusted=False), (Reason.UNTRUSTED_WORDS, "")),
        (Observation(script="GREEK"), (Reason.SCRIPT, "GREEK")),
        (Observation(script=""), (Reason.SCRIPT, "")),
        (Observation(ink=0.05), (Reason.TOO_LITTLE_INK, "0.0500 of the pixels")),
        (Observation(ink=0.0), (Reason.BLANK, "")),
        (Observation(nearest=3), (Reason.NEAR_DUPLICATE, "3 bits from one that was kept")),
    ],
)
def test_what_filters_take_and_how_look_sees_it(seen: Observation, taken: tuple[Reason, str]) -> None:
    assert taken_by(ALL_ON, seen) == taken and taken[0].kind == "filtered"
    render = load_spec("demo").render
    assert taken_by(without_filters(render.model_copy(update={"filters": ALL_ON})).filters, seen) is None


def test_what_filters_let_pass() -> None:
    assert taken_by(ALL_ON, Observation(0.7, True, "LATIN", 0.1, 4)) is None
    assert taken_by(ALL_ON, Observation()) is None


def test_the_nearest_picture_that_was_kept() -> None:
    kept = KeptHashes()
    assert kept.nearest(0b1011) is None
    kept.add(0b1011)
    kept.add(2**64 - 1)
    assert (kept.nearest(0b1011), kept.nearest(0b1110), kept.nearest(2**64 - 4)) == (0, 2, 2)
