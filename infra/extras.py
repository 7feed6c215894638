"""What a command misses where only some of the extras are installed, by the extra's name: pip install 'name[extra]'."""

from __future__ import annotations

MODULES = {  # of the packages that pyproject.toml names under each extra, as Python imports them
    "render": (
        "pymupdf",
        "pymupdf_fonts",
        "pypdfium2",
        "datasets",
        "webdataset",
        "defusedxml",
        "markdown_it",
        "duckdb",
    ),
    "train": ("torch", "deepspeed", "einops", "safetensors", "wandb"),
    "evaluate": ("scipy", "rouge_score", "rapidfuzz", "transformers", "torch_fidelity", "rapidocr", "onnxruntime"),
    "view": ("gradio", "uvicorn"),
}


def missing(error: ModuleNotFoundError) -> str:
    """One line that says what to install for the module that was not found; raises `error` where it is no extra's."""
    module = (error.name or "").partition(".")[0]
    for extra, modules in MODULES.items():
        if module in modules:
            return f"{module} is not installed here: pip install 'dnd-transformer[{extra}]'"
    raise error
