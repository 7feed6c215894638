"""The one reader of a shard set: a sequence of samples over memory-mapped shards, found by manifest."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import overload

import numpy as np
from PIL import Image

from data_specs import storage
from data_specs.manifest import read_manifest
from data_specs.npy import read_array
from data_specs.records import Item, Manifest, SampleInfo, parse_info
from data_specs.shards import Shard


def decode_fields(key: str, fields: dict[str, bytes], shard_uri: str = "") -> Item:
    """Return a sample as a dict.

    `__key__` str, `image` uint8 [H, W, 3] or `codes` uint16 [views, h, w, d], `cls` int, `json` dict.

    Raises:
        ValueError: names the shard, the sample and the field that is missing or cannot be decoded.
    """
    where = f"{shard_uri}: {key}" if shard_uri else key
    if missing := {"cls", "json"} - fields.keys():
        raise ValueError(f"{where}: has no field {min(missing)}")
    if not fields["cls"].isdigit():
        raise ValueError(f"{where}: cls is {fields['cls'][:20]!r}, not the number of a class")
    item: Item = {"__key__": key, "cls": int(fields["cls"]), "json": parse_info(fields["json"], f"{where}: json")}
    if "png" in fields:
        item["image"] = decode_image(fields["png"], where)
    if "codes.npy" in fields:
        try:
            item["codes"] = read_array(io.BytesIO(fields["codes.npy"]))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{where}: codes.npy cannot be read ({error})") from None
    return item


def decode_image(data: bytes, where: str = "an image") -> np.ndarray:
    """Decode an image to uint8 [H, W, 3].

    Raises:
        ValueError: it cannot be decoded; the message begins with `where`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: cannot be read as a picture ({error})") from None


def read_info(shard: Shard, number: int) -> SampleInfo:
    """Return what is known of a picture of a shard.

    Raises:
        ValueError: that is not whole; the message names it.
    """
    key = shard.key(number)
    return SampleInfo.parse(shard.fields(number).get("json", b""), f"{shard.uri}: {key}: json")


class ShardSet(Sequence[Item]):
    """A shard set as a sequence of items (see `decode_fields`), ordered as its manifest; shards open at first use."""

    def __init__(self, manifest_uri: str, manifest: Manifest, open_limit: int = 256) -> None:
        self.uri = manifest_uri
        self.manifest = manifest
        folder = manifest_uri.rpartition("/")[0]
        self.shard_uris = [storage.join(folder, entry.url) for entry in manifest.shardlist]
        self.ends = list(accumulate(entry.nsamples for entry in manifest.shardlist))
        self.shard = lru_cache(open_limit)(self.open)

    def open(self, number: int) -> Shard:
        """Return a shard, opened anew.

        Raises:
            ValueError: it is not the one that the manifest names.
        """
        entry = self.manifest.shardlist[number]
        shard = Shard(self.shard_uris[number], entry)
        if len(shard) != entry.nsamples:
            raise ValueError(f"{shard.uri}: {len(shard)} samples, the manifest says {entry.nsamples}; run `dnd verify`")
        return shard

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def locate(self, index: int) -> tuple[int, int]:
        """Return the shard number of sample `index`, and the number of the sample within that shard."""
        shard = bisect_right(self.ends, index)
        return shard, index - (self.ends[shard - 1] if shard else 0)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"sample {index} of {len(self)} in {self.uri}")
        shard_number, number = self.locate(position)
        shard = self.shard(shard_number)
        return decode_fields(shard.key(number), shard.fields(number), shard.uri)


def open_shards(uri: str) -> ShardSet:
    """Open a shard set by the URI of its manifest or of its folder.

    Raises:
        ValueError: there is no whole manifest; the message says what to do.
    """
    manifest_uri = uri if uri.endswith(".json") else storage.join(uri, "manifest.json")
    return ShardSet(manifest_uri, read_manifest(manifest_uri))
