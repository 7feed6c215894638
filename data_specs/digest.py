"""Digests of what a stage's result depends on, and the refusal to go on where that has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TypeGuard, cast

from data_specs import storage
from data_specs.records import Identity


def digest_of(value: Identity | Mapping[str, object]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of an identity, or of a tree of plain values."""
    return hashlib.sha256(_canonical(_tree(value)).encode()).hexdigest()


def file_digest(uri: str | Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes, which are not held.

    Raises:
        FileNotFoundError: there is none.
    """
    with storage.open_stream(str(uri)) as stream:
        return hashlib.file_digest(cast(BufferedReader, stream), "sha256").hexdigest()


def claim(folder_uri: str, identity: Identity, remedy: str = "") -> str:
    """Bind a stage's folder to its identity (FOLDER/stage.json) and return the digest.

    Args:
        remedy: as `require_same` takes it.

    Raises:
        ValueError: the folder belongs to another identity; the message says what differs.
    """
    storage.create(storage.join(folder_uri, "stage.json"), identity.to_json())
    require_claimable(folder_uri, identity, remedy)
    return digest_of(identity)


def claimed(folder_uri: str) -> Identity | None:
    """Return the identity that a stage's folder is bound to; None where it is not yet."""
    uri = storage.join(folder_uri, "stage.json")
    try:
        return Identity.parse(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        return None


def require_claimable(folder_uri: str, identity: Identity, remedy: str = "") -> None:
    """Refuse what `claim` would refuse, and write nothing."""
    if stored := claimed(folder_uri):
        require_same(folder_uri, stored, identity, remedy)


def require_same(where: str, stored: Identity, wanted: Identity, remedy: str = "") -> None:
    """Refuse to go on where a stored identity is not the wanted one.

    Args:
        where: the folder or file that the stored one was read from.
        stored: what the result was made for.
        wanted: what it would be made for now.
        remedy: what else the user can do besides going back or starting anew.

    Raises:
        ValueError: names each key in which they differ.
    """
    if stored == wanted:
        return
    found = differences(_tree(stored), _tree(wanted))
    changes = "; ".join(f"{key.removeprefix('spec.')} was {was}, is now {now}" for key, was, now in found)
    raise ValueError(
        f"{where} was made for something else: {changes}. Change it back, {remedy}or use another --root "
        "(this stage and those after it have to be made anew)"
    )


def differences(stored: object, wanted: object, prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, was, is now) for each leaf in which two trees differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted(stored.keys() | wanted.keys())
        found = [differences(stored.get(k, "absent"), wanted.get(k, "absent"), f"{prefix}{k}.") for k in keys]
        return [change for changes in found for change in changes]
    if _is_list_of_mappings(stored) and _is_list_of_mappings(wanted) and len(stored) == len(wanted):
        return differences(dict(enumerate(stored)), dict(enumerate(wanted)), prefix)
    same = _canonical(stored) == _canonical(wanted)
    return [] if same else [(prefix.rstrip("."), _short(stored), _short(wanted))]


def _tree(value: Identity | Mapping[str, object]) -> Mapping[str, object]:
    return value.model_dump(mode="json") if isinstance(value, Identity) else value


def _is_list_of_mappings(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(element, dict) for element in value)


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
