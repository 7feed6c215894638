"""Which split a document belongs to: a function of its id alone, so that no document is ever in both."""

from __future__ import annotations

import hashlib
import re


def split_of(document_id: str, val_share: float) -> str:
    """ "val" for a share of all documents, by the SHA-256 of the id; else "train"."""
    return "val" if rank(document_id) < val_share * 2**64 else "train"


def rank(document_id: str) -> int:
    """Return a hash of 64 bits: documents of the lowest ranks are validation."""
    return int.from_bytes(hashlib.sha256(document_id.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def key_of(document_id: str) -> str:
    """A document's key: arXiv's 2301.00001 becomes 2301-00001, what is not a key gets a short hash behind it."""
    if re.fullmatch(r"\d{4}\.\d{4,5}(v\d+)?", document_id):
        return document_id.replace(".", "-")
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", document_id)[:48].strip("-")
    if clean and clean == document_id:
        return clean
    return f"{clean}-{hashlib.sha256(document_id.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")
