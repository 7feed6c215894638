"""Sets of images to score: an `.npz` (arr_0, uint8, NHWC), a folder of pictures, or a shard set.

The FID family takes them in batches of one size; reading takes them one by one, of any size, each with its text where
it is known: from a shard set's json, or from NAME.txt beside a folder's picture.
"""

import hashlib
import io
import re
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image

from data_specs import open_shards, storage
from data_specs.digest import file_digest
from data_specs.npy import read_header
from data_specs.records import Box, SetInfo
from data_specs.text import printable

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # whatever a file is called, no other decoder is tried
ARRAY = "arr_0.npy"
DAMAGED = (EOFError, zlib.error, zipfile.BadZipFile)  # what reading a broken archive raises
MODEL_FILES = (".json", ".jinja", ".txt", ".model", ".safetensors", ".bin")


class Picture(NamedTuple):
    """An image uint8 [H, W, 3] with its name and, where it is known, the text drawn on it.

    `words` and `boxes` (x0, y0, x1, y1 in pixels) are parallel and hold the words that are wholly on the picture.
    """

    key: str
    image: np.ndarray
    text: str = ""
    words: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


class ImageSet(ABC):
    """Images in one order."""

    uri: str

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) over the images' names and bytes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Picture:
        """One picture, of any size.

        Raises:
            ValueError: it cannot be read; the message names it.
        """

    @abstractmethod
    def keys(self) -> list[str] | None:
        """Return the images' names in their order, or None where they have none."""

    def describe(self) -> SetInfo:
        """Return the part of a result that says what was scored."""
        return SetInfo(uri=self.uri, count=len(self), digest=self.digest)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the first image, and so of all."""
        return self[0].image.shape

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Yield the images start ... stop - 1 as uint8 arrays [<= size, H, W, 3].

        Raises:
            ValueError: the images differ in size.
        """
        for first in range(start, stop, size):
            yield np.stack([self._of_one_shape(index) for index in range(first, min(first + size, stop))])

    def _of_one_shape(self, index: int) -> np.ndarray:
        picture = self[index]
        height, width, _ = picture.image.shape
        if picture.image.shape != self.shape:
            raise ValueError(
                f"{self._place(index, picture)}: {width}x{height} px in a set of {self.shape[1]}x{self.shape[0]} px "
                "(images of several sizes); crop them to one size first"
            )
        return picture.image

    def _place(self, index: int, picture: Picture) -> str:
        """Where a picture lies, for a message."""
        return f"{self.uri}: {picture.key}"


def open_images(uri: str) -> ImageSet:
    """Open the images at `uri`: FILE.npz, a folder of pictures, or a shard set (its folder or manifest).

    Raises:
        ValueError: the source is missing or empty, or its array is not uint8 NHWC; says what is wrong.
    """
    if uri.endswith(".npz"):
        return NpzImages(uri)
    if uri.endswith("manifest.json") or storage.exists(storage.join(uri, "manifest.json")):
        return ShardImages(uri)
    return FolderImages(uri)


class NpzImages(ImageSet):
    """arr_0 of an `.npz`, streamed: the file may be larger than memory."""

    def __init__(self, uri: str):
        self.uri = uri
        self.path = local_file(uri)
        with self._open() as (_, shape):
            self.count = shape[0]
            self.shape = shape[1:]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_digest(self.path)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Picture:
        """Image `index` under its number."""
        return Picture(str(index), next(self.batches(index, index + 1, 1))[0])

    def keys(self) -> None:
        """Return None: an array's images have no names."""

    def batches(self, start: int, stop: int, size: int) -> Iterator[np.ndarray]:
        """Yield the images start ... stop - 1 as uint8 arrays [<= size, H, W, 3]."""
        image_bytes = int(np.prod(self.shape))
        with self._open() as (stream, _):
            stream.seek(start * image_bytes, io.SEEK_CUR)
            for first in range(start, stop, size):
                count = min(size, stop - first)
                try:
                    data = stream.read(count * image_bytes)
                except DAMAGED as error:
                    raise ValueError(f"{self.uri}: arr_0 is damaged after image {first} ({error})") from error
                if len(data) != count * image_bytes:
                    raise ValueError(f"{self.uri}: arr_0 ends within image {first + len(data) // image_bytes}")
                yield np.frombuffer(data, np.uint8).reshape(count, *self.shape)

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
        """arr_0, not read yet: (stream at its first value, shape [N, H, W, 3])."""
        try:
            archive = zipfile.ZipFile(self.path)
            stream = archive.open(ARRAY) if ARRAY in archive.namelist() else None
        except (
            zipfile.BadZipFile,
            RuntimeError,
            OSError,
        ) as error:  # RuntimeError: encrypted, packed otherwise
            raise ValueError(f"{self.uri}: not an .npz file ({error})") from error
        with archive:
            if stream is None:
                raise ValueError(f"{self.uri}: no arr_0 in it, only {', '.join(archive.namelist()) or 'nothing'}")
            with stream:
                yield stream, _image_shape(stream, self.uri)


class FolderImages(ImageSet):
    """Pictures under a folder, in the order of their paths with numbers counted (2.png before 10.png), as RGB: greys
    and palettes are spread over three channels, transparency is dropped, as pytorch-fid does."""

    def __init__(self, uri: str):
        self.uri = uri
        folder = Path(uri)
        if not folder.is_dir():
            raise ValueError(f"{uri}: no such folder; give an .npz, a folder of pictures, or a shard set")
        self.paths = sorted((p for p in folder.rglob("*") if p.suffix.lower() in PICTURES), key=_natural)
        if not self.paths:
            raise ValueError(f"{uri}: the folder holds no picture ({', '.join(PICTURES)}) and no shard set")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the pictures' paths and files."""
        return _digest_of_files(self.uri, self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Picture:
        """Picture `index`, with the text of NAME.txt beside it."""
        path = self.paths[index]
        text = path.with_suffix(".txt")
        drawn = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""
        return Picture(self._key(path), _read_picture(path), drawn)

    def keys(self) -> list[str]:
        """Return the pictures' paths below the folder, without suffix."""
        return [self._key(path) for path in self.paths]

    def _key(self, path: Path) -> str:
        return printable(str(path.relative_to(self.uri).with_suffix("")))

    def _place(self, index: int, picture: Picture) -> str:
        return printable(str(self.paths[index]))


class ShardImages(ImageSet):
    """A shard set of images, in the order of its manifest."""

    def __init__(self, uri: str):
        self.uri = uri
        self.items = open_shards(uri)
        if not len(self.items):
            raise ValueError(f"{uri}: the shard set is empty")
        if "image" not in self.items[0]:
            raise ValueError(f"{uri}: a shard set of codes; decode it first (`dnd decode`) and give its images")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds each tar's."""
        return file_digest(self.items.uri)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Picture:
        """Sample `index` with the text, and the words that its edge does not cut."""
        item = self.items[index]
        drawn = item["json"]
        words = zip(drawn.get("words", ()), drawn.get("boxes", ()), drawn.get("clipped", ()))
        whole = [(word, (x0, y0, x1, y1)) for word, (x0, y0, x1, y1), clipped in words if not clipped]
        text = drawn.get("text", "")
        return Picture(item["__key__"], item["image"], text, tuple(w for w, _ in whole), tuple(box for _, box in whole))

    def keys(self) -> list[str]:
        """Return the samples' keys, read from the shards' member names."""
        shards = map(self.items.shard, range(len(self.items.shard_uris)))
        return [shard.key(number) for shard in shards for number in range(len(shard))]


def folder_digest(path: str | Path) -> str:
    """Hash a model folder: SHA-256 (hex) over the names and bytes of its configurations, tokenizers and weights."""
    return _digest_of_files(path, sorted(file for file in Path(path).iterdir() if file.suffix in MODEL_FILES))


def local_file(uri: str) -> Path:
    """Return a file on this machine.

    Raises:
        ValueError: there is none at this address.
    """
    if not storage.exists(uri):
        raise ValueError(f"{uri}: no such file")
    return storage.local_copy(uri)


def _digest_of_files(folder: str | Path, files: Iterable[Path]) -> str:
    listing = "".join(f"{file.relative_to(folder)} {file_digest(file)}\n" for file in files)
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()  # names may be no text


def _image_shape(stream: IO[bytes], uri: str) -> tuple[int, ...]:
    """Read the shape of the array that begins here.

    Raises:
        ValueError: it is not uint8 [N > 0, H, W, 3]; the message says the remedy.
    """
    try:
        shape, fortran, dtype = read_header(stream)
    except (ValueError, *DAMAGED) as error:
        raise ValueError(f"{uri}: arr_0 is no readable array ({error}); save it again with numpy.savez") from error
    if fortran and len(shape) > 1:
        raise ValueError(f"{uri}: arr_0 is in Fortran order; save numpy.ascontiguousarray of it")
    if dtype != np.uint8:
        raise ValueError(
            f"{uri}: arr_0 is {dtype}, but images are uint8, 0 ... 255; scale, round, clip and convert them"
        )
    if len(shape) == 4 and shape[3] != 3 and shape[1] == 3:
        raise ValueError(f"{uri}: arr_0 is {list(shape)}, channels first (NCHW); transpose it to NHWC: (0, 2, 3, 1)")
    if len(shape) != 4 or shape[3] != 3:
        raise ValueError(f"{uri}: arr_0 is {list(shape)}; images are [N, H, W, 3]")
    if not 0 < shape[0] <= sys.maxsize:
        raise ValueError(f"{uri}: arr_0 holds {shape[0] or 'no'} image{'s' if shape[0] else ''}")
    return shape


def _read_picture(path: Path) -> np.ndarray:
    """uint8 [H, W, 3].

    Raises:
        ValueError: what is no picture of eight bits a channel.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {picture.mode}, not of eight bits: convert it first")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as a picture ({error})") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
