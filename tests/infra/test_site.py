"""The documentation site builds, its generated pages are whole, and a broken link is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_specs.spec import SECTIONS

pytest.importorskip("mkdocs", reason="the developers' lock brings mkdocs")
REPOSITORY = Path(__file__).resolve().parents[2]


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """`make site` of a copy of the repository's documents, as far as the site needs it."""
    for name in ("docs", "tools", "data_specs", "pipeline", "tokenize_jobs", "train", "infra", "tests", "examples"):
        if not (folder / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    for name in ("mkdocs.yml", "README.md"):
        shutil.copy(REPOSITORY / name, folder)
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_the_site_has_its_pages_and_all_parts_of_the_spec(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        name: (tmp_path / "build/site" / name).read_text()
        for name in ("index.html", "spec/index.html", "api/index.html")
    }
    assert "make demo" in pages["index.html"] and "load_spec" in pages["api/index.html"]
    assert [section for section in SECTIONS if section not in pages["spec/index.html"]] == []


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    with (tmp_path / "docs/sources.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    done = build(tmp_path)
    assert done.returncode != 0 and "nowhere.md" in done.stdout + done.stderr
