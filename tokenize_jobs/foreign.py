"""Reads the .pt files of others: tensors and plain data. Nothing that a file names is run, and none asks for memory.

What training scripts leave beside the weights (random states, dates, paths, configurations of omegaconf) becomes empty
shells; any other object is refused by its name. Tensors are mapped, not read, where the format allows it.
"""

from __future__ import annotations

import argparse
import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_specs.local_files import open_file

MAX_PICKLE_BYTES = 2**28  # of the tree beside the tensors; those of released models have about one megabyte
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
SHELLS = {  # packages whose objects are read past
    *("numpy", "datetime", "pathlib", "omegaconf", "random", "typing", "enum", "decimal", "fractions", "uuid"),
    *("zoneinfo", "dateutil", "pytz", "copyreg", "collections", "rqvae", "pytorch_lightning", "lightning"),
}
TYPES = {
    *("dict", "list", "str", "bool", "int", "float", "set", "frozenset", "tuple", "bytes", "bytearray", "object"),
    "long",
}


def safe_torch_load(path: Path) -> Any:
    """Return what a torch.save file holds, tensors on the CPU.

    Raises:
        ValueError: one line that names an object which is not plain data, or says why the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with open_file(str(path)) as file:
            is_zip = file.read(4) == b"PK\x03\x04"  # as torch decides it
        if is_zip:
            _refuse_members(path, size)
        elif _is_tar(path):
            raise _RefusedError("is a tar, a format that torch gave up in 2017")
        return torch.load(path, map_location="cpu", weights_only=False, mmap=is_zip, pickle_module=_reader(size))
    except _RefusedError as error:
        raise ValueError(f"{path}: {error}: refused") from None
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: is not a checkpoint of torch: refused") from None
    except Exception as error:  # a damaged file can raise anything at all
        raise ValueError(f"{path}: cannot be read as a checkpoint ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, or its name where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class _RefusedError(Exception):
    """Something in a file that is not read."""


def _refuse_members(path: Path, size: int) -> None:
    """Refuse what could unfold into more than the file has, and TorchScript, whose code torch.load would run.

    Torch's own reader is asked beside Python's: of one file they can find two different lists of members.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise _RefusedError(f"holds {member.filename} compressed, which torch never writes")
    records = torch._C.PyTorchFileReader(str(path))
    names = records.get_all_records()
    if "constants.pkl" in names:
        raise _RefusedError("is a program (TorchScript), not weights")
    if sum(_record_size(records, name) for name in names) > size:
        raise _RefusedError("holds more than it has bytes")
    if "data.pkl" in names and (beside := _record_size(records, "data.pkl")) > MAX_PICKLE_BYTES:
        raise _RefusedError(f"holds {beside:,} bytes beside its tensors")


def _record_size(records: torch._C.PyTorchFileReader, name: str) -> int:
    """Return the bytes of a member; torch 2.6 tells them only of one that it has read."""
    if hasattr(records, "get_record_size"):
        return records.get_record_size(name)
    return len(records.get_record(name))


def _is_tar(path: Path) -> bool:
    """Return whether torch would open the file as a tar; `tarfile.is_tarfile` unpacks compressed ones to find out."""
    with suppress(tarfile.TarError), tarfile.open(path, "r:"):
        return True
    return False


def _reader(file_size: int) -> Any:
    """Return the replacement for the `pickle` module with which torch reads a file of `file_size` bytes."""

    class Unpickler(_Unpickler):
        max_bytes = file_size

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(Unpickler=Unpickler, load=load, __name__="safe_pickle")


class _Unpickler(pickle._Unpickler):  # the C one grows its memo to whatever a file says
    max_bytes = 0
    copied = 0
    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get(f"{module}.{name}")
        if known is not None:
            return known
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".", maxsplit=1)[0] in SHELLS or (module in ("builtins", "__builtin__") and name in TYPES):
            return _Shell
        raise _RefusedError(f"holds an object of {module}.{name}, which is not plain data")

    @property
    def persistent_load(self) -> Callable[[Any], Any]:
        """Torch's own, for storages that are no larger than the file."""
        return self._checked_load

    @persistent_load.setter
    def persistent_load(self, load: Callable[[Any], Any]) -> None:
        self._torchs_load = load

    def _checked_load(self, key: object) -> Any:
        if isinstance(key, tuple) and len(key) > 4 and (not isinstance(key[4], int) or key[4] > self.max_bytes):
            raise _RefusedError(f"asks for {key[4]} numbers, more than the file has")
        return self._torchs_load(key)

    def load_reduce(self) -> None:
        self._count(self.stack[-1])
        super().load_reduce()  # type: ignore[misc]  # typeshed leaves it out

    def load_newobj(self) -> None:
        self._count(self.stack[-1])
        super().load_newobj()  # type: ignore[misc]

    def load_build(self) -> None:
        """Only training arguments take a state: it could change types and functions for the whole process."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], argparse.Namespace) and isinstance(state, dict):
            self._count([state])
            vars(self.stack[-1]).update(state)

    def _count(self, arguments: Iterable[Any]) -> None:
        """Refuse a file that has the same long argument copied again and again."""
        self.copied += sum(len(given) for given in arguments if isinstance(given, str | bytes | list | tuple | dict))
        if self.copied > self.max_bytes:
            raise _RefusedError("holds more than it has bytes")

    def load_unwritten(self) -> None:
        raise _RefusedError("asks for objects or buffers in a way that torch never writes")

    dispatch |= {pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_newobj, pickle.BUILD[0]: load_build}
    dispatch |= dict.fromkeys(b"".join((pickle.BYTEARRAY8, pickle.NEWOBJ_EX, pickle.OBJ, pickle.INST)), load_unwritten)


class _Shell:
    """Takes the place of an object, or of a type, that is read past; it can do nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a tensor within its storage; torch's own function would enlarge a storage that is too small."""
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= storage._size()):
        raise _RefusedError(f"holds a tensor of {list(size)} that is larger than its storage")
    tensor: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return tensor


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _dtype(kind: object, *options: Any) -> Any:
    return np.dtype(kind, *options) if kind in NUMBERS else _Shell()


def _scalar(dtype: Any, data: Any = b"") -> Any:
    number = isinstance(dtype, np.dtype) and isinstance(data, bytes) and len(data) == dtype.itemsize
    return np.frombuffer(data, dtype)[0] if number else _Shell()


def _encode(text: object, encoding: object = "latin1") -> Any:
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else _Shell()


_KNOWN: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.Size": torch.Size,
    "torch.device": _Shell,
    "torch.torch_version.TorchVersion": _Shell,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": defaultdict,
    "argparse.Namespace": argparse.Namespace,
    "easydict.EasyDict": OrderedDict,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
