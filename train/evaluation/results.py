"""What every result carries besides its figures (command, versions), and the comparison of two results."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeGuard

from data_specs import storage

if TYPE_CHECKING:
    from data_specs.reader import ShardSet

PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "torchvision",
    "torch-fidelity",
    "transformers",
    "pillow",
    "rouge-score",
    "rapidfuzz",
)
NOT_COMPARED = {"command", "versions", "worst", "texts"}


def with_provenance(result: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """`result` with the command that made it and the versions of Python, this project and what decides figures."""
    versions = {"python": platform.python_version(), "dnd-transformer": _version("dnd-transformer")}
    versions |= {name: _version(name) for name in PACKAGES}
    return {**result, "command": list(command), "versions": versions | {"commit": _commit()}}


def set_inputs(sets: dict[str, ShardSet]) -> dict[str, dict[str, Any]]:
    """{name: address, images and SHA-256 of the manifest, which holds every tar's} of the shard sets that were read."""
    return {
        name: {
            "uri": items.uri,
            "count": len(items),
            "digest": hashlib.sha256(storage.read_bytes(items.uri)).hexdigest(),
        }
        for name, items in sets.items()
    }


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Two results side by side, any tree of dicts, lists and values.

    `figures`: each number of either, {name (dotted), a, b, difference}, None where one has it not.
    `assumptions`: each text or truth value in which they differ (digests, engines, kinds, extractors): where one of
    these differs, the figures under it were not measured alike."""
    left, right = flatten(a), flatten(b)
    figures, assumptions = [], []
    for name in [*left, *(name for name in right if name not in left)]:
        x = left.get(name)
        y = right.get(name)
        if _is_figure(x) or _is_figure(y):
            difference = float(y) - float(x) if _is_figure(x) and _is_figure(y) else None
            figures.append({"name": name, "a": x, "b": y, "difference": difference})
        elif x != y:
            assumptions.append({"name": name, "a": x, "b": y})
    return {"figures": figures, "assumptions": assumptions}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of a tree, without what has no bearing on a comparison."""
    if isinstance(tree, dict):
        children = [(key, child) for key, child in tree.items() if key not in NOT_COMPARED]
    elif isinstance(tree, list):
        children = [(str(i), child) for i, child in enumerate(tree)]
    else:
        return {prefix.rstrip("."): tree}
    return {name: value for key, child in children for name, value in flatten(child, f"{prefix}{key}.").items()}


def _is_figure(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The project's commit where it runs from a checkout."""
    done = subprocess.run(
        ["git", "-C", __file__.rpartition("/")[0], "rev-parse", "HEAD"], capture_output=True, check=False
    )
    return done.stdout.decode().strip() or None
