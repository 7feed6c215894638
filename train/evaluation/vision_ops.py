"""Import of torchvision where its compiled operators do not fit the installed torch (a CUDA build beside a CPU one).

torch-fidelity and transformers import torchvision for its Python parts only; nothing here calls its operators."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_declared: list[torch.library.Library] = []  # a library undoes its declarations when it is collected


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
