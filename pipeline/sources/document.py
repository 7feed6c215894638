"""What units offer: documents with their bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

from data_specs.records import Reason


class Offered(NamedTuple):
    """A document of a unit: its bytes, or why it is not even tried.

    key: unique in its unit; origin: where it stands, without this machine's folders; about: for the samples' json.
    """

    id: str
    key: str
    origin: str
    cls: int = 0
    data: bytes = b""
    reason: Reason | None = None
    detail: str = ""
    about: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def relative(folder_uri: str, file_uri: str) -> str:
    """A file's name under the folder of a source; of a source that is one file, its last part."""
    folder = folder_uri.rstrip("/") + "/"
    return file_uri.removeprefix(folder) if file_uri.startswith(folder) else file_uri.rpartition("/")[2]


def stem(name: str) -> str:
    """A name without its suffix and without a leading `./`."""
    return name.removeprefix("./").rpartition(".")[0]
