"""Results on disk, ROOT/evaluation/NAME.json: what each carries besides its figures, and the comparison of two."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

from pydantic_core import from_json, to_jsonable_python

from data_specs import storage
from data_specs.code_version import installed_version, this_code
from data_specs.records import Summary

PACKAGES = (
    *("numpy", "scipy", "torch", "torchvision", "torch-fidelity", "transformers"),
    *("pillow", "rouge-score", "rapidfuzz"),
)
NOT_COMPARED = {"command", "versions", "worst", "texts"}


def with_provenance(result: dict[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Return `result` with the command that made it and the versions of what decides figures.

    Versions are given of Python, this project and the packages that matter.
    """
    versions = {"python": platform.python_version(), "dnd-transformer": installed_version("dnd-transformer")}
    versions |= {name: installed_version(name) for name in PACKAGES}
    return {**result, "command": list(command), "versions": versions | {"commit": this_code().commit}}


def write_result(uri: str, result: dict[str, Any]) -> str:
    """Write a result with its provenance, null for numbers that are not finite; return the text."""
    text = json.dumps(to_jsonable_python(with_provenance(result, sys.argv), inf_nan_mode="null"), indent=1)
    storage.write_text(uri, text + "\n")
    return text


def read_result(uri: str) -> dict[str, Any]:
    """Read a result as it was written.

    Raises:
        ValueError: names the file that is none.
    """
    try:
        found = from_json(storage.read_bytes(uri), allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"{uri}: not a result of `dnd evaluate` ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{uri}: not a result of `dnd evaluate` (a {type(found).__name__})")
    return found


def summary_uri(root: str) -> str:
    """Return the address of a root's summary."""
    return storage.join(root, "evaluation", "summary.json")


def read_summary(root: str) -> Summary | None:
    """Read a root's summary; return None where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    uri = summary_uri(root)
    if not storage.exists(uri):
        return None
    return Summary.parse(storage.read_bytes(uri), uri, "run `dnd evaluate summary`")


def read_results(root: str) -> dict[str, dict[str, Any]]:
    """Read {name: result} of a root's evaluations."""
    files = (file.uri for file in storage.list_files(storage.join(root, "evaluation")))
    return {uri.rpartition("/")[2].removesuffix(".json"): read_result(uri) for uri in files if uri.endswith(".json")}


@contextmanager
def naming_its_file(root: str, name: str) -> Iterator[None]:
    """Run the block; turn what a result of another shape makes it raise into one line that names its file.

    Raises:
        ValueError: the result is of another shape.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        uri = storage.join(root, "evaluation", f"{name}.json")
        raise ValueError(f"{uri}: not a result of `dnd evaluate` ({type(error).__name__}: {error})") from None


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Compare two results side by side, any tree of dicts, lists and values.

    `figures`: each number of either, {name (dotted), a, b, difference}, None where one has it not.
    `assumptions`: each text or truth value in which they differ (digests, engines, kinds, extractors): where one of
    these differs, the figures under it were not measured alike.
    """
    left, right = flatten(a), flatten(b)
    figures = []
    assumptions = []
    for name in left | right:
        x = left.get(name)
        y = right.get(name)
        if _is_figure(x) or _is_figure(y):
            difference = float(y) - float(x) if _is_figure(x) and _is_figure(y) else None
            figures.append({"name": name, "a": x, "b": y, "difference": difference})
        elif x != y:
            assumptions.append({"name": name, "a": x, "b": y})
    return {"figures": figures, "assumptions": assumptions}


def flatten(tree: object, prefix: str = "") -> dict[str, Any]:
    """Return {dotted name: value} of a tree, without what has no bearing on a comparison."""
    if isinstance(tree, dict):
        children = [(key, child) for key, child in tree.items() if key not in NOT_COMPARED]
    elif isinstance(tree, list):
        children = [(str(i), child) for i, child in enumerate(tree)]
    else:
        return {prefix.rstrip("."): tree}
    return {name: value for key, child in children for name, value in flatten(child, f"{prefix}{key}.").items()}


def _is_figure(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
