"""Results on disk, ROOT/evaluation/NAME.json: what each carries besides its figures, and the comparison of two."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import TypeGuard

from pydantic import JsonValue, ValidationError
from pydantic_core import from_json

from data_specs import storage
from data_specs.code_version import installed_version, this_code
from data_specs.records import (
    ImageScores,
    Legibility,
    PplOcr,
    Reconstruction,
    Result,
    Rocr,
    Summary,
    first_fault,
)

PACKAGES = (
    *("numpy", "scipy", "torch", "torchvision", "torch-fidelity", "transformers"),
    *("pillow", "rouge-score", "rapidfuzz"),
)
NOT_COMPARED = {"command", "versions", "worst", "texts"}
KINDS: dict[str, type[Result]] = {  # by a key that no other kind has
    **{"metric": ImageScores, "worst": Rocr, "unit": PplOcr},
    **{"sweep": Legibility, "depths": Reconstruction, "histogram": Summary},
}


def provenance(command: Sequence[str]) -> Result:
    """Return what a result says besides its figures.

    Versions are given of Python, this project and the packages that matter.
    """
    versions = {"python": platform.python_version(), "dnd-transformer": installed_version("dnd-transformer")}
    versions |= {name: installed_version(name) for name in PACKAGES}
    return Result(command=tuple(command), versions=versions | {"commit": this_code().commit})


def write_result(uri: str, result: Result) -> str:
    """Write a result with its provenance; return the text."""
    text = json.dumps(result.tree() | provenance(sys.argv).tree(), indent=1)
    storage.write_text(uri, text + "\n")
    return text


def read_result(uri: str) -> Result:
    """Read a result of any kind.

    Raises:
        ValueError: one line with the file, the key and what is wrong.
    """
    data = storage.read_bytes(uri)
    try:
        tree = from_json(data)
        kind = next((kind for key, kind in KINDS.items() if isinstance(tree, dict) and key in tree), None)
        if kind is None:
            raise ValueError(f"it has none of the keys {', '.join(KINDS)}")
        return kind.model_validate_json(data)
    except ValueError as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else error
        raise ValueError(f"{uri}: not a result of `dnd evaluate` ({fault})") from None


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


def read_results(root: str) -> dict[str, Result]:
    """Read {name: result} of a root's evaluations."""
    files = (file.uri for file in storage.list_files(storage.join(root, "evaluation")))
    return {uri.rpartition("/")[2].removesuffix(".json"): read_result(uri) for uri in files if uri.endswith(".json")}


def compare(a: dict[str, JsonValue], b: dict[str, JsonValue]) -> dict[str, list[dict[str, JsonValue]]]:
    """Compare two results side by side, any tree of dicts, lists and values.

    `figures`: each number of either, {name (dotted), a, b, difference}, None where one has it not.
    `assumptions`: each text or truth value in which they differ (digests, engines, kinds, extractors): where one of
    these differs, the figures under it were not measured alike.
    """
    left, right = flatten(a), flatten(b)
    figures = list[dict[str, JsonValue]]()
    assumptions = list[dict[str, JsonValue]]()
    for name in left | right:
        x = left.get(name)
        y = right.get(name)
        if _is_figure(x) or _is_figure(y):
            difference = float(y) - float(x) if _is_figure(x) and _is_figure(y) else None
            figures.append({"name": name, "a": x, "b": y, "difference": difference})
        elif x != y:
            assumptions.append({"name": name, "a": x, "b": y})
    return {"figures": figures, "assumptions": assumptions}


def flatten(tree: JsonValue, prefix: str = "") -> dict[str, JsonValue]:
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
