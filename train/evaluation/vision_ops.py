"""Import of torchvision where its compiled operators do not fit the installed torch (a CUDA build beside a CPU one).

torch-fidelity and transformers import torchvision for its Python parts only; nothing here calls its operators."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from data_specs.text import one_line

if TYPE_CHECKING:
    import torch

UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    UnpicklingError,
    SafetensorError,
)
_declared: list[torch.library.Library] = []  # a library undoes its declarations when it is collected


def from_folder(kind: Any, path: str, **options: Any) -> Any:
    """Load what a folder of `transformers` holds: by its own classes, never by code that lies in the folder.

    Args:
        kind: the class of `transformers` that loads.

    Raises:
        ValueError: it cannot be loaded so.
    """
    try:
        return kind.from_pretrained(path, local_files_only=True, trust_remote_code=False, **options)
    except UNREADABLE as error:
        told = one_line(error, 300)
        raise ValueError(f"{path}: transformers cannot load {kind.__name__.removeprefix('Auto')} ({told})") from None


def import_torchvision() -> None:
    """Import torchvision; where only its compiled operators cannot be loaded, declare the two it insists on.

    A call of these operators still fails. Where torchvision is not installed nothing happens."""
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        _declared.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _declared[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
