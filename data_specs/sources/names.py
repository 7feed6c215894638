"""What names of files and of members say: their type, their place under a source, and whether they are packed."""

from __future__ import annotations

ID_CHARACTERS = 1024  # of a longer id the rest is cut off
PACKED = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}  # suffix -> how it is packed
PACKED_TARS = {".tgz": "gz", ".tbz": "bz2", ".tbz2": "bz2", ".txz": "xz", ".tzst": "zst"}  # for .tar.gz and so on


def packing(name: str) -> str | None:
    """Return how a file of this name is packed, and unpacked before it is read: gz, bz2, xz, zst, or None."""
    return (PACKED | PACKED_TARS).get(name[name.rfind(".") :].lower())


def without_packing(name: str) -> str:
    """Return a name, lower case, without the suffix that says how it is packed: A.JSONL.gz -> a.jsonl."""
    name = name.lower()
    bare, dot, suffix = name.rpartition(".")
    return f"{bare}.tar" if dot + suffix in PACKED_TARS else bare if packing(name) else name


def is_parquet(name: str) -> bool:
    """Return whether a name is that of a Parquet file."""
    return name.lower().endswith(".parquet")


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a companion file which macOS adds (AppleDouble)."""
    return name.rpartition("/")[2].startswith("._") or name.startswith("__MACOSX/") or "/__MACOSX/" in name


def relative(folder_uri: str, file_uri: str) -> str:
    """Return a file's name under the folder of a source; of a source that is one file, its last part."""
    folder = folder_uri.rstrip("/") + "/"
    return file_uri.removeprefix(folder) if file_uri.startswith(folder) else file_uri.rpartition("/")[2]


def stem(name: str) -> str:
    """Return a name without its suffixes (.pdf, .tar, .tar.gz) and without a leading `./`."""
    bare, _, suffix = name.removeprefix("./").rpartition(".")
    return bare.rpartition(".")[0] if f".{suffix.lower()}" in PACKED else bare


def as_utf8(name: str) -> str:
    """Return a name as UTF-8 can hold it: names on a disk and in tars may be any bytes."""
    return name.encode("utf-8", "replace").decode()
