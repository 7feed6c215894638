"""Images as the spec's `sample` part asks for them, and pictures of them while training goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from data_specs import open_shards, storage
from data_specs.npy import array_bytes
from data_specs.reader import ShardSet
from data_specs.records import Item, Sample
from data_specs.spec import Spec
from tokenize_jobs.decode import decode_codes, grid
from tokenize_jobs.device import naming_what_to_lower
from tokenize_jobs.ranks import Ranks
from tokenize_jobs.rqvae import RQVAE
from train.model import DnDTransformer
from train.sampling import FREE, sample_best, sample_codes

SHOWN = 16  # images of a picture


def classes_of(spec: Spec, first: int, count: int) -> np.ndarray:
    """Return the classes int64 [count] of images first … first + count - 1, as spec.sample.classes says."""
    index = np.arange(first, first + count)
    number = spec.transformer.num_classes
    if listed := spec.sample.listed_classes:
        return np.array(listed)[index % len(listed)]
    if spec.sample.classes == "per_class":
        return np.minimum(index * number // spec.sample.num, number - 1)
    return np.array([np.random.default_rng((spec.seed, int(i))).integers(number) for i in index])


def sample_batch(
    model: DnDTransformer, spec: Spec, classes: np.ndarray, first: int, given: torch.Tensor | None = None
) -> torch.Tensor:
    """Sample codes int64 [B, L, D] of images first … first + B - 1 of these classes [B], as spec.sample says."""
    section = spec.sample
    options: dict[str, Any] = {
        name: getattr(section, name)
        for name in ("guidance", "guidance_schedule", "guidance_interval", "temperature", "top_k", "top_p")
    }
    options |= {"seed": spec.seed, "first_index": first}
    wanted = torch.from_numpy(classes).to(next(model.parameters()).device)
    if section.candidates > 1:
        if given is not None:
            given = given.repeat_interleave(section.candidates, dim=0)
        return sample_best(model, wanted, candidates=section.candidates, given=given, **options)[0][:, 0]
    codes = sample_codes(model, wanted, given=given, **options)
    assert isinstance(codes, torch.Tensor)
    return codes


def draw_grid(model: DnDTransformer, spec: Spec, tokenizer: RQVAE | None, ranks: Ranks) -> np.ndarray | None:
    """Draw the first images of a model that every rank has: each draws a share, the one with the tokenizer decodes.

    Returns:
        uint8 [H, W, 3], None on ranks without tokenizer.
    """
    share = math.ceil(SHOWN / ranks.world)
    first = ranks.rank * share
    gathered = ranks.gather(sample_batch(model, spec, classes_of(spec, first, share), first).cpu())
    if tokenizer is None:
        return None
    codes = torch.cat(gathered)[:SHOWN].unflatten(1, spec.codes.grid)
    return grid(list(decode_codes(tokenizer, codes.numpy(), spec.sample.rounding)))


def sample_range(model: DnDTransformer, spec: Spec, first: int, count: int, root: str = "") -> Iterator[Sample]:
    """Yield code samples of images first … first + count - 1; every batch is full, the last one padded."""
    section, (rows, columns) = spec.sample, spec.codes.grid
    size = section.batch_size
    assert size is not None, "sample_job.py settles the batch before it plans"
    fixed = open_given(spec, root)
    for start in range(first, first + count, size):
        used = min(size, first + count - start)
        classes = classes_of(spec, start, size)
        with naming_what_to_lower("sample.batch_size", size):
            given = None if fixed is None else given_codes(spec, fixed, start, size)
            codes = sample_batch(model, spec, classes, start, given)
        grids = codes[:used].reshape(used, 1, rows, columns, -1).cpu().numpy().astype(np.uint16)
        for offset in range(used):
            index = start + offset
            cls = int(classes[offset])
            about = json.dumps({"id": str(index), "source": f"sample {section.name}"}, sort_keys=True).encode()
            yield Sample(f"{index:08d}", {"codes.npy": array_bytes(grids[offset]), "cls": b"%d" % cls, "json": about})


def open_given(spec: Spec, root: str) -> ShardSet | None:
    """Open the code set that sample.given names; None where nothing is given.

    Raises:
        ValueError: it has no codes.
    """
    given = spec.sample.given
    if given is None:
        return None
    items = open_shards(storage.join(root, given.codes))
    if not len(items) or "codes" not in items[0]:
        raise ValueError(f"sample.given.codes {given.codes}: has no codes: name a code set with samples, as codes/val")
    return items


def given_codes(spec: Spec, items: Sequence[Item], first: int, count: int) -> torch.Tensor:
    """Return what spec.sample.given fixes for images first … first + count - 1.

    Args:
        items: the samples of its code set, taken in turn.

    Returns:
        Codes [count, L, D], FREE where to sample.

    Raises:
        ValueError: codes that are not of the spec's shape.
    """
    section = spec.sample.given
    assert section is not None, "asked for where something is given"
    shape = (*spec.shape.grid, spec.shape.depth)
    codes = np.stack([items[i % len(items)]["codes"][0] for i in range(first, first + count)]).astype(np.int64)
    if codes.shape[1:] != shape:
        raise ValueError(f"sample.given.codes {section.codes}: codes of {codes.shape[1:]}, the spec's are {shape}")
    if section.depths is not None:
        codes[..., section.depths :] = FREE
    if section.hole is not None:
        top, left, bottom, right = section.hole
        codes[:, top:bottom, left:right] = FREE
    return torch.from_numpy(codes).flatten(1, 2)
