"""What code a root was made by: ROOT/code.json, a list that only grows.

A submission that was accepted and every stage that begins its work add to it: commit, the patch of what was not
committed (ROOT/code-….patch), Python, packages, image. With ROOT/submitted/STAGE.yaml that is enough to run it again:

    git checkout COMMIT && git apply code-….patch && make test    # dnd STAGE ROOT/submitted/STAGE.yaml --root NEW
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from data_specs import storage
from data_specs.records import CodeEntry, CodeHistory

NAME = "code.json"
REPOSITORY = Path(__file__).resolve().parents[1]
MAX_PATCH_BYTES = 8 << 20
_KEY = re.compile(  # a quoted value of a telling name, or the well-known forms
    rb"""((?:secret|token|passw(?:or)?d|api_?key|access_?key)\w*["']?\s*[=:]\s*["'])[^"'\n]{8,}"""
    rb"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b(?:hf|ghp|gho|xox[abp])[_-][A-Za-z0-9_-]{16,}"
    rb"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*",
    re.IGNORECASE,
)


class Code(NamedTuple):
    """A state of the code: its commit, where that is known, and what a checkout of it lacks."""

    commit: str | None
    patch: bytes


def record_code(root: str, code: Code | None = None, **event: str) -> None:
    """Add an entry to ROOT/code.json, unless it equals the last one of the same event.

    Args:
        code: that of a job which was sent elsewhere; by default the code that this process runs.
        event: what happened: `began` a folder of the root, or `submitted` a stage with `on`, `job` and `image`.
    """
    code = code or this_code()
    uri = storage.join(root, NAME)
    history = read_history(root)
    entry = _entry(code, event)
    same = [old for old in history.entries if (old.began, old.submitted) == (entry.began, entry.submitted)]
    if same and same[-1].model_copy(update={"at": entry.at}) == entry:
        return
    if name := patch_name(code):
        storage.create(storage.join(root, name), code.patch)
    storage.write(uri, CodeHistory(entries=(*history.entries, entry)).to_json())


def read_history(root: str) -> CodeHistory:
    """Read ROOT/code.json; what there is none of is empty.

    Raises:
        ValueError: it is damaged.
    """
    uri = storage.join(root, NAME)
    return CodeHistory.parse(storage.read_bytes(uri), uri) if storage.exists(uri) else CodeHistory()


def _entry(code: Code, event: dict[str, str]) -> CodeEntry:
    return CodeEntry(
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        commit=code.commit,
        dirty=bool(code.patch or os.environ.get("DND_PATCH")),
        patch=patch_name(code) or os.environ.get("DND_PATCH"),
        python=platform.python_version(),
        packages=_packages(),
        **{"image": os.environ.get("DND_IMAGE", "")} | event,
    )


@functools.cache
def _packages() -> dict[str, str]:
    """Return the installed packages by name, as they are at the first call: Ray adds others later."""
    heads = (found.metadata for found in metadata.distributions())  # each look parses the file anew
    return {head["Name"]: head["Version"] for head in heads if head["Name"]}


def installed_version(package: str) -> str | None:
    """Return the version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def patch_name(code: Code) -> str | None:
    """Return the name of the file that holds what is not committed; None for nothing, and for too much."""
    kept = 0 < len(code.patch) <= MAX_PATCH_BYTES
    return f"code-{hashlib.sha256(code.patch).hexdigest()[:8]}.patch" if kept else None


@functools.cache
def this_code() -> Code:
    """Return the code that this process runs: of its checkout, else as its image or submission says (DND_COMMIT)."""
    try:
        return checkout(REPOSITORY)
    except (ValueError, FileNotFoundError):  # no checkout, or no git
        return Code(os.environ.get("DND_COMMIT"), b"")


def checkout(folder: Path) -> Code:
    """Return a checkout's commit, and what is not committed.

    Raises:
        ValueError: the folder is no checkout of ours.
    """
    if not (folder / ".git").exists():
        raise ValueError(f"{folder}: no checkout")
    return Code(_git(folder, "rev-parse", "HEAD").decode().strip(), _uncommitted(folder))


def _uncommitted(folder: Path) -> bytes:
    """`git diff` of what git tracks against HEAD, without what looks like a key."""
    return _KEY.sub(rb"\1[left out: it looks like a key]", _git(folder, "diff", "--binary", "HEAD"))


def _git(folder: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"git {arguments[0]} in {folder}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
