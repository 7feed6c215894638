"""Import of torchvision where its compiled operators do not fit the installed torch (a CUDA build beside a CPU one).

torch-fidelity and transformers import torchvision for its Python parts only; nothing here calls its operators."""

import sys

import torch

_library: torch.library.Library | None = None


def import_torchvision() -> None:
    """Import torchvision; where only its compiled operators cannot be loaded, declare the two it insists on.

    A call of these operators still fails. Raises ModuleNotFoundError where torchvision is not installed."""
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
