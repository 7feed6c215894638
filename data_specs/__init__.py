"""The ground floor: specs, storage, shards, receipts and manifests. Imports neither torch nor ray."""

from data_specs.reader import open_shards
from data_specs.spec import load_spec

__all__ = ["load_spec", "open_shards"]
