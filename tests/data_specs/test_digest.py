"""Digests: equal work has equal digests, and a refusal says what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_specs.digest import claim, differences, digest_of, require_same
from data_specs.records import Identity

TREE = {"seed": 1, "render": {"dpi": 152.4, "fonts": ["a", "b"]}, "versions": {"pillow": "11"}}
IDENTITY = Identity(stage="render", seed=1, spec={"render": {"dpi": 152.4}}, versions={"pillow": "11"})


def test_the_order_of_keys_does_not_matter() -> None:
    assert digest_of(TREE) == digest_of(dict(reversed(TREE.items())))
    assert digest_of(TREE) != digest_of(TREE | {"seed": 2})
    assert digest_of(IDENTITY) == digest_of(IDENTITY.model_dump(mode="json"))


def test_tuples_and_lists_are_the_same_work() -> None:
    assert digest_of({"grid": (1, 2)}) == digest_of({"grid": [1, 2]})


def test_differences_name_each_leaf() -> None:
    changed = {"seed": 1, "render": {"dpi": 100, "fonts": ["a"]}, "new": True}
    assert differences(TREE, changed) == [
        ("new", '"absent"', "true"),
        ("render.dpi", "152.4", "100"),
        ("render.fonts", '["a", "b"]', '["a"]'),
        ("versions", '{"pillow": "11"}', '"absent"'),
    ]


def test_differences_within_a_list_of_parts_name_the_part() -> None:
    was, now = ([{"kind": "arxiv", "months": "0703"}, {"kind": kind}] for kind in ("pdf", "text"))
    assert differences({"sources": was}, {"sources": now}) == [("sources.1.kind", '"pdf"', '"text"')]
    assert differences({"sources": was}, {"sources": now[:1]})[0][0] == "sources"


def test_long_values_are_shortened() -> None:
    ((_, was, now),) = differences({"a": "x" * 500}, {"a": 1})
    assert len(was) == 80 and was.endswith("...") and now == "1"


def test_a_folder_belongs_to_its_first_identity(tmp_path: Path) -> None:
    folder = str(tmp_path / "tokenizer")
    assert claim(folder, IDENTITY) == claim(folder, IDENTITY) == digest_of(IDENTITY)
    with pytest.raises(ValueError, match=r"tokenizer was made for something else: seed was 1, is now 2.*--root"):
        claim(folder, IDENTITY.model_copy(update={"seed": 2}))
    assert claim(folder, IDENTITY) == digest_of(IDENTITY)


def test_a_refusal_names_keys_as_the_spec_does() -> None:
    other = IDENTITY.model_copy(update={"spec": {"render": {"dpi": 100.0}}})
    with pytest.raises(ValueError, match=r"^images was made for something else: render.dpi was 152.4, is now 100.0\."):
        require_same("images", IDENTITY, other)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": 1}', "[" * 300, '{"stage": "x", "seed": NaN}'])
def test_a_damaged_identity_is_one_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*stage\.json: not a valid identity [^\n]*$"):
        claim(str(tmp_path), IDENTITY)


def test_over_s3(s3_root: str) -> None:
    claim(f"{s3_root}/tokenizer", IDENTITY)
    with pytest.raises(ValueError, match=r"s3://.*seed was 1, is now 2"):
        claim(f"{s3_root}/tokenizer", IDENTITY.model_copy(update={"seed": 2}))
