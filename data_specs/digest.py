"""Stage identities: what a stage's result depends on, its digest, and the refusal when that has changed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from data_specs import storage

Identity = dict[str, Any]


def digest_of(identity: Identity) -> str:
    """SHA-256 (hex) of the identity's canonical JSON."""
    return hashlib.sha256(_canonical(identity).encode()).hexdigest()


def claim(folder_uri: str, identity: Identity) -> str:
    """Binds a stage's folder to its identity (FOLDER/stage.json) and returns the digest.

    Raises ValueError saying what differs if the folder belongs to another identity.
    """
    uri = storage.join(folder_uri, "stage.json")
    storage.create_if_absent(uri, (json.dumps(identity, indent=1, sort_keys=True) + "\n").encode())
    require_same(folder_uri, json.loads(storage.read_text(uri)), identity)
    return digest_of(identity)


def require_same(where: str, stored: Identity, wanted: Identity, remedy: str = "") -> None:
    """Raises ValueError naming each key in which a stored identity differs from the wanted one.

    remedy: what this stage offers besides going back and starting anew.
    """
    if _canonical(stored) == _canonical(wanted):
        return
    changes = "; ".join(f"{key} was {was}, is now {now}" for key, was, now in differences(stored, wanted))
    raise ValueError(
        f"{where} was made for something else: {changes}. Change it back, {remedy}or use another --root "
        "(this stage and those after it have to be made anew)"
    )


def differences(stored: Any, wanted: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, was, is now) for each leaf in which two trees differ."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = sorted(stored.keys() | wanted.keys())
        found = [differences(stored.get(k, "absent"), wanted.get(k, "absent"), f"{prefix}{k}.") for k in keys]
        return [change for changes in found for change in changes]
    if _are_parts(stored) and _are_parts(wanted) and len(stored) == len(wanted):
        return differences(dict(enumerate(stored)), dict(enumerate(wanted)), prefix)
    same = _canonical(stored) == _canonical(wanted)
    return [] if same else [(prefix.rstrip("."), _short(stored), _short(wanted))]


def _are_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
