"""Every file in infra that a machine reads has a check of its own, and names no account, machine or user."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

INFRA = Path(__file__).resolve().parents[2] / "infra"
CHECKED_BY = {
    "py.typed": "infra/test_installing.py",
    "deepspeed/*.json": "train/test_engine.py",
    "deepspeed/hostfile.example": "infra/test_launch.py",
    "docker/Dockerfile": "infra/test_docker.py",
    "kubernetes/*.yaml": "infra/test_kubernetes.py",
    "ray/*": "infra/test_ray_config.py",
    "ray/grafana.json": "pipeline/test_gauges.py",
    "**/*.sh": "infra/test_launch.py",
    "**/*.sbatch": "infra/test_launch.py",
    "skypilot/*.yaml": "infra/test_skypilot.py",
    "report/page.html": "infra/test_cli.py",
    "view/*": "infra/test_view.py",
}
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))


def test_every_file_has_a_check() -> None:
    checked = {path for pattern in CHECKED_BY for path in INFRA.glob(pattern)}
    assert [str(path.relative_to(INFRA)) for path in FILES if path not in checked] == []
    assert all((INFRA.parent / "tests" / test).is_file() for test in CHECKED_BY.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(INFRA)))
def test_no_account_no_machine_no_secret(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b\d{12}\b|AKIA[0-9A-Z]{16}|\bami-[0-9a-f]{8,}|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert not re.search(r"(?<![\w.])/(home|Users|work|scratch|lustre|mnt)/", text)


@pytest.mark.parametrize("floor", ["data_specs", "pipeline", "tokenize_jobs", "train", "infra"])
def test_the_readmes_tree_names_every_module_and_no_other(floor: str) -> None:
    tree = (INFRA.parent / "README.md").read_text().partition("## The tree\n")[2].partition("\n\n")[0]
    part = re.split(r"^    (?=\w)", tree, flags=re.MULTILINE)
    named = next(text for text in part if text.startswith(f"{floor}/")).partition("/")[2]
    members = [path for path in (INFRA.parent / floor).iterdir() if not path.name.startswith("__")]
    found = {f"{path.name}/" if path.is_dir() else path.name for path in members if path.suffix in ("", ".py")}
    assert set(re.findall(r"[\w.]+\.py|\w+/", named)) == found
