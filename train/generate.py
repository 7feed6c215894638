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
from tokenize_jobs.decode import decode_codes
from tokenize_jobs.device import pick_device
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer
from train.linear import packed
from train.model import DnDTransformer
from train.sampling import sample_codes
from train.weights import load_transformer


class Generator(NamedTuple):
    """A transformer and the tokenizer whose codes it speaks."""

    transformer: DnDTransformer
    tokenizer: RQVAE

    def pictures(self, num: int, classes: Sequence[int] | None = None, **options: Any) -> list[Image.Image]:
        """`num` pictures; classes: one each, in turn where there are fewer (default: class 0).

        Options are those of train.sampling.sample_codes: guidance, temperature, top_k, top_p, seed, first_index …
        """
        wanted = [classes[i % len(classes)] if classes else 0 for i in range(num)]
        codes = sample_codes(self.transformer, wanted, **options)
        assert isinstance(codes, torch.Tensor)
        grids = codes.unflatten(1, self.tokenizer.config.grid).cpu().numpy()
        return [Image.fromarray(image) for image in decode_codes(self.tokenizer, grids)]


def load_root(root: str, ema: bool = True, dtype: torch.dtype = torch.float32) -> Generator:
    """The models of a root (a folder or s3:// URI), trained there or imported, for sampling only.

    Raises ValueError where one is missing or they do not fit each other.
    """
    root, device = storage.absolute(root), pick_device()
    transformer = load_transformer(storage.join(root, "transformer"), ema=ema, device=device, dtype=dtype)
    tokenizer = load_tokenizer(storage.join(root, "tokenizer"), device=device)
    ours, theirs = transformer.config, tokenizer.config
    if (*ours.grid, ours.depth, ours.codebook_size) != (*theirs.code_shape, theirs.codebook_size):
        raise ValueError(
            f"{root}: the transformer makes codes {[*ours.grid, ours.depth]} of {ours.codebook_size}, the tokenizer "
            f"reads {list(theirs.code_shape)} of {theirs.codebook_size}: import a pair that belongs together"
        )
    return Generator(packed(transformer), tokenizer)
