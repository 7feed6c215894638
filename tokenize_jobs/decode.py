"""Decoding: code shards become image shards, then PNGs, `samples.npz` (arr_0, uint8, NHWC) and a grid picture."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data_specs import storage
from data_specs.npy import header_bytes
from data_specs.progress import Progress
from data_specs.reader import decode_fields
from data_specs.records import Item, Sample
from data_specs.shape import Shape
from data_specs.shards import Shard
from data_specs.spec import Spec
from pipeline.png import encode_photo
from tokenize_jobs.device import naming_what_to_lower
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig

GREY = 128


def decode_shard(model: RQVAE, spec: Spec, depths: int | None, shard: Shard) -> Iterator[Sample]:
    """Decode the first view of each sample of a code shard into an image sample, in order.

    Args:
        depths: decode the first so many codes of each position (None: all).
    """
    size = spec.tokenize.compute_batch
    assert size is not None, "job.py settles the batch before it plans"
    numbers = iter(range(len(shard)))
    while batch := list(islice(numbers, size)):
        fields = [shard.fields(number) for number in batch]
        codes = np.stack([decode_fields(shard.key(n), f, shard.uri)["codes"][0] for n, f in zip(batch, fields)])
        images = decode_codes(model, codes_by_depth(codes, model.config)[..., :depths], spec.sample.rounding, size)
        for number, field, image in zip(batch, fields, images, strict=True):
            yield Sample(shard.key(number), {"png": encode_photo(image), "cls": field["cls"], "json": field["json"]})


@torch.inference_mode()
def decode_codes(model: RQVAE, codes: np.ndarray, rounding: str = "nearest", pad_to: int = 0) -> np.ndarray:
    """Return images uint8 [B, H, W, 3] of codes [B, h, w, d] or flattened ones.

    Args:
        rounding: "nearest", or "truncate" as the authors' script does.
        pad_to: batch size to which codes are padded, so that it does not vary.
    """
    codes = codes_by_depth(codes, model.config)
    device = next(model.parameters()).device
    padded = np.zeros((max(pad_to, len(codes)), *codes.shape[1:]), np.int64)
    padded[: len(codes)] = codes
    with naming_what_to_lower("tokenize.compute_batch", len(padded)):
        return to_uint8(model.decode(torch.from_numpy(padded).to(device))[: len(codes)], rounding)


def codes_by_depth(codes: np.ndarray, config: RQVAEConfig | Shape) -> np.ndarray:
    """Return codes [B, h, w, d] as they are, or those of flattened ones [B, h, wd, 1], whose offsets go."""
    if codes.shape[2] == config.grid[1]:
        return codes
    return rearrange(codes % config.codebook_size, "b h (w d) 1 -> b h w d", w=config.grid[1])


def to_uint8(images: Tensor, rounding: str) -> np.ndarray:
    """Convert float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    scaled = (images.float() * 0.5 + 0.5).clamp(0, 1) * 255  # the arithmetic of the authors' script
    scaled = scaled.round() if rounding == "nearest" else scaled
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def write_pictures(items: Sequence[Item], out_uri: str) -> None:
    """Write each image as OUT/pictures/KEY.png, all of them as OUT/samples.npz, the first 64 as OUT/grid.png."""
    progress = Progress("pictures", len(items), "images")
    for item in items:
        storage.write(storage.join(out_uri, "pictures", f"{item['__key__']}.png"), encode_photo(item["image"]))
        progress.advance()
    write_npz(items, storage.join(out_uri, "samples.npz"))
    storage.write(storage.join(out_uri, "grid.png"), encode_photo(grid([item["image"] for item in items[:64]])))


def write_npz(items: Sequence[Item], uri: str) -> None:
    """Write `arr_0` uint8 [N, H, W, 3] by streaming: memory holds one image at a time."""
    shape = (len(items), *items[0]["image"].shape)
    with storage.writable_folder(uri.rpartition("/")[0]) as folder:
        path = Path(folder, uri.rpartition("/")[2])
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
        ):
            file.write(header_bytes(shape, "|u1"))
            for item in items:
                file.write(np.ascontiguousarray(item["image"]).tobytes())


def grid(images: Sequence[np.ndarray], columns: int = 8, gap: int = 2) -> np.ndarray:
    """Put images uint8 [H, W, 3] of one size side by side, row by row, on grey."""
    columns = min(columns, len(images))
    blanks = [np.full_like(images[0], GREY)] * (-len(images) % columns)
    cells = np.pad(np.stack([*images, *blanks]), ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=GREY)
    together = rearrange(cells, "(row column) h w rgb -> (row h) (column w) rgb", column=columns)
    return np.pad(together, ((0, gap), (0, gap), (0, 0)), constant_values=GREY)
