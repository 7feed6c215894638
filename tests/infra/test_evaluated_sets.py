"""Which pictures `dnd evaluate` takes by a name: those under the root, else those at the address."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_sets import write_images

from infra.commands.evaluation import _pictures


def test_a_name_is_one_under_the_root_else_an_address(
    tmp_path: Path, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for root in (str(tmp_path / "run"), f"{s3_root}/run"):
        write_images(f"{root}/images/val", [2])
        assert _pictures(root, "images/val").uri == f"{root}/images/val"
        with pytest.raises(ValueError, match=f"^{root}/images/test: no such folder"):
            _pictures(root, "images/test")
    write_images("images/val", [3])
    write_images("mine", [1])
    assert [len(_pictures(root, name)) for name in ("images/val", "mine")] == [2, 1]
