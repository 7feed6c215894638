"""Pictures from Python: a root's (or imported) transformer and tokenizer in one object.

from train.generate import load_root
model = load_root("runs/demo")
pictures = model.pictures(8, temperature=0.4, seed=1)  # PIL images
pictures[0].save("first.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from data_specs import storage
from data_specs.shape import CodeShape
from data_specs.sources.images import read_class_names
from tokenize_jobs.decode import decode_codes
from tokenize_jobs.device import pick_device
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer
from train.linear import packed
from train.model import DnDTransformer
from train.sampling import sample_codes
from train.weights import load_transformer


class Generator(NamedTuple):
    """A transformer, the tokenizer whose codes it speaks, and the names of its classes where the root has them."""

    transformer: DnDTransformer
    tokenizer: RQVAE
    class_names: dict[str, int] = {}  # noqa: RUF012 (never changed)

    def pictures(self, num: int, classes: Sequence[int | str] | None = None, **options: Any) -> list[Image.Image]:
        """Draw pictures.

        Args:
            num: how many.
            classes: numbers or names, taken in turn (default: evenly over all classes).
            options: those of train.sampling.sample_codes: guidance, temperature, top_k, top_p, seed, first_index …

        Raises:
            ValueError: a class that the model does not have.
        """
        given = [self._class(cls) for cls in classes or ()]
        number = self.transformer.config.num_classes
        wanted = [given[i % len(given)] if given else i * number // max(num, 1) for i in range(num)]
        codes = sample_codes(self.transformer, wanted, **options)
        assert isinstance(codes, torch.Tensor)
        grids = codes.unflatten(1, self.transformer.config.grid).cpu().numpy()
        return [Image.fromarray(image) for image in decode_codes(self.tokenizer, grids)]

    def _class(self, cls: int | str) -> int:
        if isinstance(cls, int):
            return cls
        if cls not in self.class_names:
            known = ", ".join(list(self.class_names)[:10]) or "none: give numbers"
            raise ValueError(f"class {cls!r}: there is none of that name; names: {known}")
        return self.class_names[cls]


def load_root(root: str, ema: bool = True, dtype: torch.dtype = torch.float32) -> Generator:
    """Load the models of a root (a folder or s3:// URI), trained there or imported, for sampling only.

    Raises:
        ValueError: one is missing, or they do not fit each other.
    """
    root = storage.absolute(root)
    device = pick_device()
    transformer = load_transformer(storage.join(root, "transformer"), ema=ema, device=device, dtype=dtype)
    tokenizer = load_tokenizer(storage.join(root, "tokenizer"), device=device)
    made = CodeShape.of(transformer.config)
    read = CodeShape.of(tokenizer.config)
    if made != read.flattened():
        read.refuse_other(made, f"{root}/transformer", "the tokenizer's", "import a pair that belongs together")
    names = read_class_names(storage.join(root, "images", "classes.json"))
    return Generator(packed(transformer), tokenizer, {name: number for number, name in names.items()})
