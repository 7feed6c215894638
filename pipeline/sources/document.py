"""What sources list and what units offer: documents by the place of their bytes, then with their bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

from data_specs.storage import FileInfo


class Document(NamedTuple):
    """Where a document lies: a file, `length` bytes of it from `start`, or row `start` of a table; `cls` is its class.

    Bytes of a .gz file are counted in what it unpacks to. A class of -1 is unknown: such an image will be rejected.
    """

    id: str
    file: FileInfo
    start: int | None = None
    length: int | None = None
    cls: int = 0


class Offered(NamedTuple):
    """A document of a unit: its bytes, or why it is not even tried (`kind` "filtered" or "rejected").

    key: unique in its unit; origin: where it stands, without this machine's folders; about: for the samples' json.
    """

    id: str
    key: str
    origin: str
    cls: int = 0
    data: bytes = b""
    reason: str = ""
    kind: str = "rejected"
    about: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def relative(folder_uri: str, file_uri: str) -> str:
    """A file's name under the folder of a source; of a source that is one file, its last part."""
    folder = folder_uri.rstrip("/") + "/"
    return file_uri.removeprefix(folder) if file_uri.startswith(folder) else file_uri.rpartition("/")[2]


def stem(name: str) -> str:
    """A name without its suffix and without a leading `./`."""
    return name.removeprefix("./").rpartition(".")[0]
