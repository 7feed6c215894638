"""ROOT/images/README.md (`dnd card ROOT`): what a published image set must say of itself, read by streaming.

The head is what Hugging Face's hub reads. Who is to be named stands in attribution.jsonl, a document a line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, TextIO, get_args

import yaml

from data_specs import open_shards, storage
from data_specs.reader import ShardSet, read_info
from data_specs.records import Manifest, Reason, SampleInfo
from data_specs.root import spec_of
from data_specs.scratch import scratch_folder
from data_specs.spec import Spec
from data_specs.text import markdown
from data_specs.units import require_plan

SPLITS = ("train", "val")
SHOWN = 10  # attributions on the card itself
NAMED = ("id", "title", "authors", "licence", "url")  # what an attribution says
UNKNOWN = "not known"


class Counts(NamedTuple):
    """Documents and samples by licence, and the first samples of some documents, whose attributions are shown."""

    documents: Counter[str]
    samples: Counter[str]
    shown: list[SampleInfo]


def write_card(root: str) -> str:
    """Write the card and the attribution of ROOT/images and return the card's address.

    Raises:
        ValueError: a split is unfinished.
    """
    images = storage.join(root, "images")
    sets = {split: open_shards(storage.join(images, split)) for split in SPLITS}
    manifests = {split: items.manifest for split, items in sets.items()}
    spec = spec_of(root, "images")
    plan = require_plan(storage.join(images, "train"))
    with scratch_folder() as folder:
        path = folder / "attribution.jsonl"
        with path.open("w", encoding="utf-8") as file:
            counts = _attributed(sets.values(), file)
        storage.write(storage.join(images, "attribution.jsonl"), path)
    head = yaml.safe_dump(_head(spec, manifests, counts.samples), sort_keys=False, allow_unicode=True)
    body = "\n".join(_body(spec, manifests, counts, plan.identity.versions))
    storage.write_text(storage.join(images, "README.md"), f"---\n{head}---\n{body}\n")
    return storage.join(images, "README.md")


def _attributed(sets: Iterable[ShardSet], file: TextIO) -> Counts:
    """Count documents and samples by licence, and write a line for each document that says whose it is."""
    counts = Counts(Counter(), Counter(), [])
    shards = (items.open(number) for items in sets for number in range(len(items.shard_uris)))
    for shard in shards:
        infos = (read_info(shard, number) for number in range(len(shard)))
        for _, of_document in groupby(infos, attrgetter("id")):  # a document's samples stand together
            first, *others = of_document
            counts.documents[first.licence or UNKNOWN] += 1
            counts.samples.update(about.licence or UNKNOWN for about in (first, *others))
            named = {key: value for key in NAMED if (value := getattr(first, key))}
            file.write(json.dumps(named, ensure_ascii=False) + "\n")
            if len(counts.shown) < SHOWN:
                counts.shown.append(first)
    return counts


def _head(spec: Spec, manifests: dict[str, Manifest], samples: Counter[str]) -> dict[str, Any]:
    licences = sorted(name.lower() for name in samples if name != UNKNOWN) or ["unknown"]
    total = sum(manifest.totals.written for manifest in manifests.values())
    files = [{"split": "validation" if s == "val" else s, "path": f"{s}/*.tar"} for s in SPLITS]
    return {
        "pretty_name": spec.name,
        "license": licences[0] if len(licences) == 1 else licences,
        "task_categories": ["unconditional-image-generation"],
        "tags": ["webdataset", "text-image"],
        "size_categories": [_size_category(total)],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": _features()},
    }


def _features() -> list[dict[str, Any]]:
    """Return the fields of a sample and their types as `datasets` writes them.

    From an empty list `datasets` could not infer the type.
    """
    about = [{"name": name, **_type(field.annotation)} for name, field in SampleInfo.model_fields.items()]
    ends = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    return [
        {"name": "png", "dtype": "image"},
        {"name": "cls", "dtype": "int64"},
        {"name": "json", "struct": about},
        *ends,
    ]


def _type(annotation: Any) -> dict[str, Any]:
    """Return the type of a field of SampleInfo: a scalar, or for a tuple a list of the type of its entries."""
    if entries := get_args(annotation):
        inner = _type(entries[0])
        return {"list": inner.get("dtype", inner)}
    return {"dtype": {str: "string", int: "int64", float: "float64", bool: "bool"}[annotation]}


def _size_category(total: int) -> str:
    """As the hub has it: n<1K, 1K<n<10K … 100M<n<1B, the most that is told."""
    bounds = ("n", "1K", "10K", "100K", "1M", "10M", "100M", "1B")
    power = min(max(len(str(total)) - 3, 0), len(bounds) - 2)
    return f"{bounds[power]}<n<{bounds[power + 1]}" if power else "n<1K"


def _body(spec: Spec, manifests: dict[str, Manifest], counts: Counts, versions: dict[str, str]) -> Iterator[str]:
    yield f"# {spec.name}\n"
    size = spec.shape.image_size
    yield f"Images of {size} x {size} px in WebDataset shards: `png`, `cls`, `json`.\n"
    yield "| split | shards | images | filtered | rejected | bytes |\n| --- | --- | --- | --- | --- | --- |"
    for split, manifest in manifests.items():
        totals = manifest.totals
        numbers = (len(manifest.shardlist), totals.written, totals.filtered, totals.rejected, totals.bytes)
        yield f"| {split} | {' | '.join(map(str, numbers))} |"
    yield "\nNot written, by reason:\n"
    for kind in ("filtered", "rejects"):
        counted = sum((Counter(getattr(manifest, kind)) for manifest in manifests.values()), Counter[Reason]())
        yield from (f"- {kind}: {count} {reason}" for reason, count in counted.most_common(20))
    yield "\n## Sources\n"
    yield from (f"- {source.kind}: {markdown(_origin(source))}" for source in spec.render.sources)
    yield "\n## Licences\n\n| licence | documents | images |\n| --- | --- | --- |"
    for name, count in counts.samples.most_common():
        yield f"| {markdown(name)} | {counts.documents[name]} | {count} |"
    number = counts.documents.total()
    yield f"\n## Attribution\n\n`attribution.jsonl` names all {number} documents; the first of them:\n"
    yield from (f"- {_attribution(about)}" for about in counts.shown)
    yield "\n## How it was made\n"
    yield "    dnd render images/spec.yaml --root ROOT\n"
    yield "with " + ", ".join(f"{name} {number}" for name, number in versions.items()) + " and this spec:\n"
    yield "```yaml\n" + _without_folders(spec).to_yaml() + "```"


def _without_folders(spec: Spec) -> Spec:
    """Return the spec with each source's name in place of its path, which concerns nobody outside this machine."""
    named = [s.model_copy(update={"uri": _origin(s)}) if hasattr(s, "uri") else s for s in spec.render.sources]
    return spec.changed("render", sources=named)


def _origin(source: object) -> str:
    """Where a source is, without this machine's folders; a remote one in full."""
    uri = getattr(source, "uri", None)
    return "made by dnd" if uri is None else uri if "://" in uri else uri.rstrip("/").rpartition("/")[2]


def _attribution(about: SampleInfo) -> str:
    parts = (about.title or about.id, about.authors, about.url, about.licence)
    return " · ".join(markdown(" ".join(part.split())) for part in parts if part)
