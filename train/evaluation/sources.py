"""Sets of images to score: an `.npz` (arr_0, uint8, NHWC), a folder of pictures, or a shard set, read in batches."""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_specs import open_shards, storage

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ARRAY = "arr_0.npy"


class ImageSet(Protocol):
    """Images of one size, in one order; `digest` is over their names and bytes."""

    uri: str
    digest: str

    def __len__(self) -> int: ...

    def keys(self) -> list[str] | None:
        """The images' names in their order, None where they have none."""
        ...

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Images start ... stop - 1 as uint8 arrays [<= size, H, W, 3]."""
        ...


def open_images(uri: str) -> ImageSet:
    """The images at `uri`: FILE.npz, a folder of pictures, or a shard set (its folder or manifest).

    Raises ValueError, naming what is wrong, for a missing or empty source and for arrays that are not uint8 NHWC."""
    if uri.endswith(".npz"):
        return NpzImages(uri)
    if uri.endswith("manifest.json") or storage.exists(storage.join(uri, "manifest.json")):
        return ShardImages(uri)
    return FolderImages(uri)


def slice_of(count: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """The contiguous slice (start, stop) of `count` images that `rank` of `num_ranks` reads."""
    return count * rank // num_ranks, count * (rank + 1) // num_ranks


class NpzImages:
    """arr_0 of an `.npz`, streamed: the file may be larger than memory."""

    def __init__(self, uri: str):
        self.uri, self.path = uri, _local_file(uri)
        self.digest = file_digest(self.path)
        with open_array(self.path, uri) as (_, shape, dtype):
            check_array(uri, shape, dtype)
            self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def keys(self) -> None:
        """None: an array's images have no names."""

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Images start ... stop - 1 as uint8 arrays [<= size, H, W, 3]."""
        image_bytes = int(np.prod(self.shape[1:]))
        with open_array(self.path, self.uri) as (stream, _, _):
            stream.seek(start * image_bytes, io.SEEK_CUR)
            for first in range(start, stop, size):
                count = min(size, stop - first)
                data = stream.read(count * image_bytes)
                if len(data) != count * image_bytes:
                    raise ValueError(f"{self.uri}: arr_0 ends within image {first + len(data) // image_bytes}")
                yield np.frombuffer(data, np.uint8).reshape(count, *self.shape[1:])


class FolderImages:
    """Pictures under a folder, in the order of their paths with numbers counted (2.png before 10.png)."""

    def __init__(self, uri: str):
        self.uri, folder = uri, Path(uri)
        if not folder.is_dir():
            raise ValueError(f"{uri}: no such folder; give an .npz, a folder of pictures, or a shard set")
        self.paths = sorted((p for p in folder.rglob("*") if p.suffix.lower() in PICTURES), key=_natural)
        if not self.paths:
            raise ValueError(f"{uri}: the folder holds no picture ({', '.join(PICTURES)}) and no shard set")
        listing = "".join(f"{path.relative_to(folder)} {file_digest(path)}\n" for path in self.paths)
        self.digest = hashlib.sha256(listing.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def keys(self) -> list[str]:
        """The pictures' paths below the folder, without suffix."""
        return [str(path.relative_to(self.uri).with_suffix("")) for path in self.paths]

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Images start ... stop - 1 as uint8 arrays [<= size, H, W, 3]."""
        for first in range(start, stop, size):
            paths = self.paths[first : min(first + size, stop)]
            yield _stack([_read_picture(path) for path in paths], self.uri)


class ShardImages:
    """A shard set of images, in the order of its manifest; the digest is the manifest's, which holds each tar's."""

    def __init__(self, uri: str):
        self.uri = uri
        self.items = open_shards(uri)
        manifest = uri if uri.endswith("manifest.json") else storage.join(uri, "manifest.json")
        self.digest = hashlib.sha256(storage.read_bytes(manifest)).hexdigest()
        if not len(self.items):
            raise ValueError(f"{uri}: the shard set is empty")
        if "image" not in self.items[0]:
            raise ValueError(f"{uri}: a shard set of codes; decode it first (`dnd decode`) and give its images")

    def __len__(self) -> int:
        return len(self.items)

    def keys(self) -> list[str]:
        """The samples' keys, read from the shards' member names."""
        return [_key(self.items, i) for i in range(len(self.items))]

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Images start ... stop - 1 as uint8 arrays [<= size, H, W, 3]."""
        for first in range(start, stop, size):
            yield _stack([self.items[i]["image"] for i in range(first, min(first + size, stop))], self.uri)


def check_array(uri: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raises ValueError unless an image array is uint8 [N, H, W, 3] with N > 0, saying how to make it so."""
    if dtype != np.uint8:
        raise ValueError(
            f"{uri}: arr_0 is {dtype}, but images are uint8, 0 ... 255; scale, round, clip and convert them"
        )
    if len(shape) == 4 and shape[3] != 3 and shape[1] == 3:
        raise ValueError(f"{uri}: arr_0 is {list(shape)}, channels first (NCHW); transpose it to NHWC: (0, 2, 3, 1)")
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"{uri}: arr_0 is {list(shape)}; images are [N, H, W, 3]")
    if shape[0] == 0:
        raise ValueError(f"{uri}: arr_0 holds no image")


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def open_array(path: Path, uri: str) -> Iterator[tuple[Any, tuple[int, ...], np.dtype]]:
    """Opens arr_0 of an `.npz` without reading it: (stream at its first value, shape, dtype)."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{uri}: not an .npz file ({error})") from error
    with archive:
        if ARRAY not in archive.namelist():
            raise ValueError(f"{uri}: no arr_0 in it, only {', '.join(archive.namelist()) or 'nothing'}")
        with archive.open(ARRAY) as stream:
            version = np.lib.format.read_magic(stream)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read_header:
                raise ValueError(f"{uri}: arr_0 is of the npy format {version}; save it again with numpy.savez")
            shape, fortran, dtype = read_header[version](stream)
            if fortran and len(shape) > 1:
                raise ValueError(f"{uri}: arr_0 is in Fortran order; save numpy.ascontiguousarray of it")
            yield stream, shape, dtype


def _read_picture(path: Path) -> np.ndarray:
    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error


def _local_file(uri: str) -> Path:
    if not storage.exists(uri):
        raise ValueError(f"{uri}: no such file")
    return storage.local_copy(uri)


def _key(items: Any, index: int) -> str:
    shard, number = items.locate(index)
    return items.shard(shard).key(number)


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _stack(images: list[np.ndarray], uri: str) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise ValueError(f"{uri}: images of several sizes ({sorted(shapes)[:3]} ...); crop them to one size first")
    return np.stack(images)
