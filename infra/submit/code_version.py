"""What code a job ran, written into the root: with ROOT/submitted/STAGE.yaml all that is needed to run it again.

git checkout COMMIT && git apply code-PATCH.patch && make test    # dnd STAGE ROOT/submitted/STAGE.yaml --root NEW
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from data_specs import storage
from infra.submit.job import REPOSITORY

MAX_PATCH_BYTES = 8 << 20


def record(root: str, stage: str, facts: dict[str, Any]) -> None:
    """Notes under `stage` in ROOT/code.json: commit, patch of what is not committed, versions, and `facts`.

    Raises ValueError where the changes are too many to keep.
    """
    uri = storage.join(root, "code.json")
    stages = json.loads(storage.read_text(uri)) if storage.exists(uri) else {}
    stages[stage] = facts | code_version(root)
    storage.write_text(uri, json.dumps(stages, indent=1, sort_keys=True) + "\n")


def code_version(root: str) -> dict[str, Any]:
    """commit (None outside of a checkout or image), dirty, the patch's name under the root, Python and packages."""
    commit, patch = os.environ.get("DND_COMMIT"), b""
    if (REPOSITORY / ".git").exists():
        commit, patch = _git("rev-parse", "HEAD").decode().strip(), _uncommitted()
    name = f"code-{hashlib.sha256(patch).hexdigest()[:8]}.patch" if patch else None
    if name:
        storage.create_if_absent(storage.join(root, name), patch)
    packages = {found.name: found.version for found in metadata.distributions() if found.name}
    return {
        "commit": commit,
        "dirty": bool(patch),
        "patch": name,
        "python": platform.python_version(),
        "packages": dict(sorted(packages.items())),
    }


def _uncommitted() -> bytes:
    """`git diff` of the working tree, new files and all, against HEAD; the user's index stays as it is."""
    with tempfile.TemporaryDirectory(prefix="dnd-index-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git("read-tree", "HEAD", **index)
        _git("add", "--all", **index)
        patch = _git("diff", "--cached", "--binary", "HEAD", **index)
    if len(patch) > MAX_PATCH_BYTES:
        raise ValueError(
            f"{REPOSITORY}: {len(patch) >> 20} MiB are not committed: commit them, or name them in .gitignore"
        )
    return patch


def _git(*arguments: str, **variables: str) -> bytes:
    done = subprocess.run(
        ["git", *arguments], cwd=REPOSITORY, env=os.environ | variables, capture_output=True, check=False
    )
    if done.returncode:
        raise ValueError(f"git {arguments[0]} in {REPOSITORY}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
