"""ROOT/images/README.md (`dnd card ROOT`): what a published image set must say of itself, read by streaming.

The head is what Hugging Face's hub reads. Who is to be named stands in attribution.jsonl, a document a line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO, get_args

import yaml

from data_specs import storage
from data_specs.manifest import read_manifest
from data_specs.reader import read_info
from data_specs.records import Manifest, Reason, SampleInfo
from data_specs.root import spec_of
from data_specs.scratch import scratch_folder
from data_specs.shards import Shard
from data_specs.spec import Spec
from data_specs.text import markdown
from data_specs.units import read_plan

SPLITS = ("train", "val")
SHOWN = 10  # attributions on the card itself
NAMED = ("id", "title", "authors", "licence", "url")  # what an attribution says
UNKNOWN = "not known"


def write_card(root: str) -> str:
    """Writes card and attribution of ROOT/images and returns the card's address.

    Raises ValueError where a split is unfinished.
    """
    images = storage.join(root, "images")
    manifests = {split: read_manifest(storage.join(images, split, "manifest.json")) for split in SPLITS}
    spec = spec_of(root, "images")
    documents = Counter[str]()
    samples = Counter[str]()
    shown = list[SampleInfo]()
    with scratch_folder() as folder:
        path = folder / "attribution.jsonl"
        with path.open("w", encoding="utf-8") as file:
            _account(images, manifests, file, (documents, samples), shown)
        storage.write(storage.join(images, "attribution.jsonl"), path)
    plan = read_plan(storage.join(images, "train"))
    assert plan is not None
    head = yaml.safe_dump(_head(spec, manifests, samples), sort_keys=False, allow_unicode=True)
    body = "\n".join(_body(spec, manifests, documents, samples, shown, plan.identity.versions))
    storage.write_text(storage.join(images, "README.md"), f"---\n{head}---\n{body}\n")
    return storage.join(images, "README.md")


def _account(
    images: str,
    manifests: dict[str, Manifest],
    file: TextIO,
    counts: tuple[Counter[str], Counter[str]],
    shown: list[SampleInfo],
) -> None:
    """Counts documents and samples by licence, and writes a line for each document that says whose it is."""
    documents, samples = counts
    for split, manifest in manifests.items():
        for entry in manifest.shardlist:
            last = None
            shard = Shard(storage.join(images, split, entry.url), entry)
            for about in (read_info(shard, number) for number in range(len(shard))):
                licence = about.licence or UNKNOWN
                samples[licence] += 1
                if about.id != last:  # a document's samples stand together
                    documents[licence] += 1
                    named = {key: value for key in NAMED if (value := getattr(about, key))}
                    file.write(json.dumps(named, ensure_ascii=False) + "\n")
                    if len(shown) < SHOWN:
                        shown.append(about)
                last = about.id


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
    """The fields of a sample and their types as `datasets` writes them: of an empty list it could not tell the type."""
    about = [{"name": name, **_type(field.annotation)} for name, field in SampleInfo.model_fields.items()]
    ends = [{"name": name, "dtype": "string"} for name in ("__key__", "__url__")]
    return [
        {"name": "png", "dtype": "image"},
        {"name": "cls", "dtype": "int64"},
        {"name": "json", "struct": about},
        *ends,
    ]


def _type(annotation: Any) -> dict[str, Any]:
    """The type of a key of SampleInfo: a scalar, or a tuple as a list of the type of its entries."""
    if entries := get_args(annotation):
        inner = _type(entries[0])
        return {"list": inner.get("dtype", inner)}
    return {"dtype": {str: "string", int: "int64", float: "float64", bool: "bool"}[annotation]}


def _size_category(total: int) -> str:
    bounds = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M"), (10**8, "100M")]
    below = "n"
    for bound, name in bounds:
        if total < bound:
            return f"n<{name}" if below == "n" else f"{below}<n<{name}"
        below = name
    return "100M<n<1B"


def _body(
    spec: Spec,
    manifests: dict[str, Manifest],
    documents: Counter[str],
    samples: Counter[str],
    shown: list[SampleInfo],
    versions: dict[str, str],
) -> Iterator[str]:
    yield f"# {spec.name}\n"
    size = spec.shape.image_size
    yield f"Images of {size} x {size} px in WebDataset shards: `png`, `cls`, `json`.\n"
    yield "| split | shards | images | filtered | rejected | bytes |\n| --- | --- | --- | --- | --- | --- |"
    for split, manifest in manifests.items():
        totals = manifest.totals
        counts = (len(manifest.shardlist), totals.written, totals.filtered, totals.rejected, totals.bytes)
        yield f"| {split} | {' | '.join(map(str, counts))} |"
    yield "\nNot written, by reason:\n"
    for kind in ("filtered", "rejects"):
        counted = sum((Counter(getattr(manifest, kind)) for manifest in manifests.values()), Counter[Reason]())
        yield from (f"- {kind}: {count} {reason}" for reason, count in counted.most_common(20))
    yield "\n## Sources\n"
    yield from (f"- {source.kind}: {markdown(_origin(source))}" for source in spec.render.sources)
    yield "\n## Licences\n\n| licence | documents | images |\n| --- | --- | --- |"
    yield from (f"| {markdown(name)} | {documents[name]} | {count} |" for name, count in samples.most_common())
    yield f"\n## Attribution\n\n`attribution.jsonl` names all {sum(documents.values())} documents; the first of them:\n"
    yield from (f"- {_attribution(about)}" for about in shown)
    yield "\n## How it was made\n"
    yield "    dnd render images/spec.yaml --root ROOT\n"
    yield "with " + ", ".join(f"{name} {number}" for name, number in versions.items()) + " and this spec:\n"
    yield "```yaml\n" + _without_folders(spec).to_yaml() + "```"


def _without_folders(spec: Spec) -> Spec:
    """The spec with sources by name: where they lie on this machine concerns nobody else."""
    named = [s.model_copy(update={"uri": _origin(s)}) if hasattr(s, "uri") else s for s in spec.render.sources]
    return spec.changed("render", sources=named)


def _origin(source: object) -> str:
    """Where a source is, without this machine's folders; a remote one in full."""
    uri = getattr(source, "uri", None)
    return "made by dnd" if uri is None else uri if "://" in uri else uri.rstrip("/").rpartition("/")[2]


def _attribution(about: SampleInfo) -> str:
    parts = (about.title or about.id, about.authors, about.url, about.licence)
    return " · ".join(markdown(" ".join(part.split())) for part in parts if part)
