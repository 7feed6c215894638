"""The ground floor: specs, storage, shards, receipts and manifests. Imports neither torch nor ray."""

from typing import TYPE_CHECKING

from data_specs.spec import load_spec

if TYPE_CHECKING:
    from data_specs.reader import open_shards

__all__ = ["load_spec", "open_shards"]


def __getattr__(name: str) -> object:
    """`open_shards` with its reader, when it is first asked for: NumPy and Pillow are slow to load."""
    if name != "open_shards":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from data_specs.reader import open_shards

    return open_shards
