"""Lays a user's YAML over a Kubernetes manifest: `dnd submit … --patch overlay.yaml`.

`metadata` and `spec` are the manifest's own; `pod` is laid over the spec of every pod, `container` over every one of
its containers. Mappings are merged, null takes a key out, lists are appended to, and their members with a name are
merged by it. An example: infra/kubernetes/overlay.example.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from data_specs.text import one_line

Manifest = dict[str, Any]  # a Kubernetes object, which the API server checks
Overlay = Mapping[str, dict[str, object]]
KEYS = ("metadata", "spec", "pod", "container")
NAMES = ("name", "groupName")


def read_overlay(path: str) -> Overlay:
    """Return the overlay in a file.

    Raises:
        ValueError: it cannot be read, or has a key that is not one of KEYS.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"--patch {path}: cannot be read ({one_line(error)}): give a YAML file") from None
    if not isinstance(tree, dict):
        raise ValueError(f"--patch {path}: holds no mapping: give {', '.join(KEYS)}")
    for key, value in tree.items():
        if key not in KEYS or not isinstance(value, dict):
            raise ValueError(f"--patch {path}: {key}: give {', '.join(KEYS)}, each with a mapping")
    return tree


def laid_over(manifest: Manifest, overlay: Overlay) -> Manifest:
    """Return the manifest with the overlay's keys."""
    made = _merged_mappings(manifest, {key: overlay[key] for key in ("metadata", "spec") if key in overlay})
    for pod in list(pod_specs(made)):
        patched = _merged_mappings(pod, overlay.get("pod", {}))
        pod.clear()
        pod.update(patched)
        pod["containers"] = [merged(container, overlay.get("container", {})) for container in patched["containers"]]
    return made


def pod_specs(tree: object) -> Iterator[Manifest]:
    """Yield every pod's spec in a manifest: what has containers."""
    if isinstance(tree, list):
        for member in tree:
            yield from pod_specs(member)
    elif isinstance(tree, dict) and "containers" in tree:
        yield tree
    elif isinstance(tree, dict):
        for member in tree.values():
            yield from pod_specs(member)


def merged(below: object, above: object) -> object:
    """Return `below` with `above` laid over it."""
    if isinstance(above, dict):
        return _merged_mappings(below if isinstance(below, dict) else {}, above)
    if isinstance(below, list) and isinstance(above, list):
        return _merged_lists(below, above)
    return above


def _merged_mappings(below: Manifest, above: Mapping[str, object]) -> Manifest:
    both = below | {key: merged(below.get(key), value) for key, value in above.items()}
    return {key: value for key, value in both.items() if value is not None}


def _merged_lists(below: list[object], above: list[object]) -> list[object]:
    indices = {name: index for index, member in enumerate(below) if (name := _name(member))}
    made = list(below)
    for member in above:
        name = _name(member)
        index = indices.get(name) if name else None
        if index is None:
            made.append(member)
        else:
            made[index] = merged(made[index], member)
    return made


def _name(member: object) -> tuple[str, str] | None:
    """Return the key and value that identify a member of a list, or None where it has none."""
    if not isinstance(member, dict):
        return None
    return next(((key, member[key]) for key in NAMES if key in member), None)
