"""The picture sets of a root as far as they have come: samples by shard, by an expression, with all that is known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import infra.stages  # noqa: F401 (the registry is filled)
from data_specs import storage
from data_specs.manifest import load_manifest, summarise
from data_specs.reader import ShardSet
from data_specs.receipts import valid_receipts
from data_specs.records import Item, Reason, Reject, SampleInfo
from data_specs.root import name_under
from data_specs.shards import key_hash
from data_specs.sources.images import read_class_names
from data_specs.table import matching
from data_specs.units import read_plan
from data_specs.verify import find_shard_sets
from infra.look import with_boxes
from infra.report.report import data_uri, template
from pipeline.png import encode_photo
from pipeline.stages import find

if TYPE_CHECKING:
    from jinja2.environment import TemplateModule

SEARCHED = 64  # shards of codes that are looked through for a key
ABOUT = ("id", "licence", "source", "title", "authors", "url", "page", "box", "engine")


def set_names(root: str, holds: str) -> list[str]:
    """Return the names under the root of the shard sets that hold "images" or "codes"."""
    found = []
    for uri in find_shard_sets(root):
        plan = read_plan(uri)
        if plan and getattr(find(plan.identity.stage), "holds", None) == holds:
            found.append(name_under(root, uri))
    return found


def open_now(root: str, name: str) -> ShardSet:
    """Open a set with the samples that have a receipt by now.

    Raises:
        ValueError: there is no such set.
    """
    uri = storage.join(root, name)
    manifest_uri = storage.join(uri, "manifest.json")
    try:
        manifest = load_manifest(manifest_uri)
    except FileNotFoundError:
        plan = read_plan(uri)
        if plan is None:
            raise ValueError(f"{uri}: there is no shard set here") from None
        manifest = summarise(plan, name)
    return ShardSet(manifest_uri, manifest)


def shard_numbers(items: ShardSet) -> list[int]:
    """Return the units whose shards a set has, in its order."""
    return [int(entry.url.partition("-")[0]) for entry in items.manifest.shardlist]


def chosen(items: ShardSet, unit: int | None, where: str) -> Sequence[int]:
    """Return the indices of samples that match an expression over the columns of the tables.

    They are of one unit's shard, or of all.

    Raises:
        ValueError: there is no such shard, or the expression cannot be read.
    """
    numbers = shard_numbers(items)
    if unit is not None and unit not in numbers:
        raise ValueError(f"{items.uri}: there is no shard {unit} (there are {len(numbers)}, 0 to {max(numbers)})")
    if unit is None and not where.strip():
        return range(len(items))
    found = list[int]()
    for shard in range(len(numbers)) if unit is None else [numbers.index(unit)]:
        first = items.ends[shard - 1] if shard else 0
        all_of_it = range(items.ends[shard] - first)
        found += (first + int(n) for n in (matching(items.shard(shard), where) if where.strip() else all_of_it))
    return found


def codes_of(root: str, name: str, key: str, unit: int) -> np.ndarray | None:
    """Return the codes uint16 [views, h, w, d] of a picture, or None where it has none under this root.

    Args:
        name: the set of the picture.
        key: its key.
        unit: the unit of its shard, where its codes are looked for first.
    """
    folder, _, rest = name.partition("/")
    of = {"images": f"codes/{rest}", "reconstructions": f"codes/{rest.partition('/')[0]}"}
    codes = of.get(folder, f"{name.removesuffix('/images')}/codes")
    if not storage.exists(storage.join(root, codes, "plan.jsonl")):
        return None
    items = open_now(root, codes)
    units = shard_numbers(items)
    for shard in sorted(range(len(units)), key=lambda number: units[number] != unit)[:SEARCHED]:
        rows = items.shard(shard).rows
        if len(found := rows["sample"][rows["key_hash"] == key_hash(key)]):
            first = items.ends[shard - 1] if shard else 0
            return np.asarray(items[first + int(found[0])]["codes"])
    return None


def class_names(root: str) -> list[tuple[str, int]]:
    """Return the names and numbers of the classes, where the root has them."""
    names = read_class_names(storage.join(root, "images", "classes.json"))
    return [(name, number) for number, name in names.items()]


# ---- as HTML ---------------------------------------------------------------------------------------------------------
def macro(name: str, *values: object) -> str:
    """Render a macro of parts.html with these values: whatever documents wrote into them is escaped."""
    return str(getattr(_parts(), name)(*values))


@cache
def _parts() -> TemplateModule:
    return template(Path(__file__).parent / "parts.html").module


def shown(words: str, image: np.ndarray) -> tuple[str, str]:
    """Return a picture uint8 [H, W, 3] and the words below it, as the macros take them."""
    return words, data_uri(encode_photo(image))


def about(item: Item, shard: str) -> str:
    """Render a sample: its picture with the boxes of its words, its text, and what else is known of it."""
    known = item["json"]
    picture = item["image"]
    caption = item["__key__"]
    if "words" in known:
        info = SampleInfo.parse(json.dumps(known).encode(), caption)
        picture = np.asarray(with_boxes(Image.fromarray(picture), info))
        caption = f"{len(info.words)} words, {sum(info.clipped)} of them cut by the edge"
    facts: list[tuple[str, object]] = [("key", item["__key__"]), ("shard", shard), ("class", item["cls"])]
    values = dict[str, object](known)
    facts += [(name, values[name]) for name in ABOUT if values.get(name) not in (None, "", -1)]
    return macro("sample", shown(caption, picture)[1], caption, known.get("text", ""), facts)


# ---- what is not there -----------------------------------------------------------------------------------------------
def reasons(root: str, name: str) -> list[tuple[str, str, int]]:
    """Return (filtered or rejected, reason, count) for a set, the most frequent first."""
    manifest = open_now(root, name).manifest
    counts = [("filtered", str(r), n) for r, n in manifest.filtered.items()]
    counts += [("rejected", str(r), n) for r, n in manifest.rejects.items()]
    return sorted(counts, key=lambda row: -row[2])


def rejects(root: str, name: str, reason: str) -> Iterator[Reject]:
    """Yield the documents and pictures of a set that were rejected for a reason.

    Raises:
        ValueError: there is no such set.
    """
    uri = storage.join(root, name)
    plan = read_plan(uri)
    if plan is None:
        raise ValueError(f"{uri}: there is no shard set here")
    for receipt in valid_receipts(uri, plan.digest):
        yield from (reject for reject in receipt.rejected if reject.reason == Reason(reason))
