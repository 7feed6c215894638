"""Validates Kubernetes manifests against custom resource definitions, as strictly as `kubectl apply --validate=strict`.

for fault in faults(manifest, definition): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

Manifest = dict[str, Any]


def read_manifests(path: Path) -> list[Manifest]:
    """All documents of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def faults(manifest: Manifest, definition: Path) -> Iterator[str]:
    """What a cluster with this CustomResourceDefinition would refuse or silently drop, one line each."""
    crd = _read(definition)
    group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
    version = manifest["apiVersion"].removeprefix(f"{group}/")
    schemas = {v["name"]: v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["served"]}
    if manifest["kind"] != kind or version not in schemas:
        yield f"{manifest['apiVersion']} {manifest['kind']} is not {group} {kind} of version {sorted(schemas)}"
        return
    schema = strict(schemas[version])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}  # a built-in type, not in the file
    for error in Draft202012Validator(schema).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"


@cache
def _read(definition: Path) -> Manifest:
    """A definition, a megabyte of YAML: by libyaml where PyYAML has it."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    made: Manifest = yaml.load(definition.read_text(encoding="utf-8"), Loader=loader)
    return made


def strict(schema: Any) -> Any:
    """The schema with unknown keys refused and Kubernetes' own extensions put as JSON Schema."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string") is True:
        made["type"] = ["integer", "string"]
    if made.get("nullable") is True and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    closed = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    if closed and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
