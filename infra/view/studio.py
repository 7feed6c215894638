"""What the studio does with a root's models: draws, paints holes anew, completes coarse codes, goes on with a text."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat

from data_specs import storage
from data_specs.spec import Spec
from pipeline.renderers import Picture
from pipeline.renderers.text import render_text
from tokenize_jobs.decode import decode_codes
from tokenize_jobs.device import to_device
from tokenize_jobs.rqvae import RQVAE
from tokenize_jobs.weights import load_tokenizer
from train.evaluation.reconstruction import difference
from train.generate import Generator, load_root
from train.sampling import FREE, sample_codes

Hole = tuple[int, int, int, int]  # rows top … bottom - 1 and columns left … right - 1 of the grid
Drawn = tuple[np.ndarray, np.ndarray]  # codes int64 [B, h, w, d], and their pictures uint8 [B, H, W, 3]


class Base(NamedTuple):
    """What is given: a picture uint8 [H, W, 3], its codes int64 [h, w, d], and where [h, w] they are not kept."""

    picture: np.ndarray
    codes: np.ndarray
    free: np.ndarray


def models(root: str, ema: bool) -> Generator:
    """Return the models of a root, loaded again when training has written others.

    Raises:
        ValueError: one is missing, or they do not fit each other.
    """
    weights = "ema.safetensors" if ema else "transformer.safetensors"
    return _models(root, ema, _etag(root, "transformer", weights), _etag(root, "tokenizer", "tokenizer.safetensors"))


@lru_cache(1)
def _models(root: str, ema: bool, *etags: str) -> Generator:
    return load_root(root, ema=ema)


def tokenizer_of(uri: str) -> RQVAE:
    """Return the tokenizer in a folder, loaded again when training has written another.

    Raises:
        ValueError: there is none.
    """
    return _tokenizer(uri, _etag(uri, "tokenizer.safetensors"))


@lru_cache(1)
def _tokenizer(uri: str, etag: str) -> RQVAE:
    return load_tokenizer(uri)


def _etag(*path: str) -> str:
    file = storage.stat(storage.join(*path))
    return file.etag if file else ""


def by_depth(tokenizer: RQVAE, codes: np.ndarray, depths: int, original: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the original, what the first codes of each position decode to, and the difference."""
    made = decode_codes(tokenizer, codes[None, ..., :depths])[0]
    named = (f"from {depths} of {codes.shape[-1]} codes a position", made)
    if original.shape != made.shape:
        return [named]
    return [("original", original), named, ("difference; grey is none", difference(original, made))]


def sample_base(model: Generator, codes: np.ndarray) -> Base:
    """Return the codes [h, w, d] as what is given, all of them kept."""
    codes = codes.astype(np.int64)
    return Base(decode_codes(model.tokenizer, codes[None])[0], codes, np.zeros(codes.shape[:2], bool))


def text_base(model: Generator, spec: Spec, text: str) -> Base:
    """Draw a text as the root's passages are drawn, and encode it.

    The codes up to its last word are kept; those after it are left to sample.

    Raises:
        ValueError: it cannot be drawn, or does not fit on one picture.
    """
    size = spec.shape.image_size
    made = list(render_text(text, "studio", spec.render.text, spec.seed, spec.render.crop_size or size, size))
    if len(made) != 1 or not isinstance(made[0], Picture) or len(made[0].about["words"]) < len(text.split()):
        reason = getattr(made[0], "reason", "it is longer than one picture: give fewer words")
        raise ValueError(f"the text cannot be drawn: {reason}")
    image = made[0].image
    boxes = np.array(made[0].about["boxes"])
    codes = model.tokenizer.encode(to_device(image[None].copy(), next(model.tokenizer.parameters()).device))
    return Base(image, codes[0].cpu().numpy(), after_words(boxes, codes.shape[1:3], size))


def after_words(boxes: np.ndarray, grid: tuple[int, ...], size: int) -> np.ndarray:
    """Return the cells bool [h, w] of a picture of `size` pixels that come after its last word.

    The boxes [n, 4] of its words are in reading order.
    """
    rows, columns = ((np.arange(number) + 0.5) * (size / number) for number in grid)  # the middles of the cells
    right, top, bottom = boxes[-1, 2], boxes[-1, 1], boxes[-1, 3]
    return (rows > bottom)[:, None] | ((rows > top)[:, None] & (columns > right)[None])


def hole_of(words: str, grid: tuple[int, ...]) -> Hole | None:
    """Parse a hole, `top, left, bottom, right` in positions of the grid; return None for an empty text.

    Raises:
        ValueError: it is not four numbers, or lies outside of the grid.
    """
    if not words.strip():
        return None
    try:
        top, left, bottom, right = (int(word) for word in words.replace(",", " ").split())
    except ValueError:
        raise ValueError(f"hole {words!r}: give four numbers, top, left, bottom, right") from None
    if not (0 <= top < bottom <= grid[0] and 0 <= left < right <= grid[1]):
        raise ValueError(f"hole {words!r}: top < bottom within {grid[0]} rows, left < right within {grid[1]} columns")
    return top, left, bottom, right


def given_codes(base: Base, hole: Hole | None, depths: int) -> np.ndarray:
    """Return the codes int64 [h, w, d] that are given: the first `depths` of each position.

    They are FREE in the hole and where the base is.
    """
    codes = base.codes.copy()
    codes[base.free] = FREE
    codes[..., depths:] = FREE
    if hole:
        codes[hole[0] : hole[2], hole[1] : hole[3]] = FREE
    return codes


def draw(
    model: Generator,
    spec: Spec,
    cls: int,
    number: int,
    given: np.ndarray | None,
    *,
    temperature: float,
    guidance: float,
    seed: int,
) -> Drawn:
    """Draw pictures of a class, around what is given; what is no argument here is as the spec says.

    Args:
        given: codes [h, w, d], FREE where they are to be drawn; None draws all.

    Raises:
        ValueError: the model has no such class, or cannot do what is asked for.
    """
    fixed = None if given is None else repeat(torch.from_numpy(given), "h w d -> b (h w) d", b=number)
    codes = sample_codes(
        model.transformer,
        [cls] * number,
        guidance=guidance,
        temperature=temperature,
        top_k=spec.sample.top_k,
        top_p=spec.sample.top_p,
        seed=seed,
        guidance_schedule=spec.sample.guidance_schedule,
        guidance_interval=spec.sample.guidance_interval,
        given=fixed,
    )
    assert isinstance(codes, torch.Tensor)
    drawn = rearrange(codes, "b (h w) d -> b h w d", h=spec.codes.grid[0]).cpu().numpy()
    return drawn, decode_codes(model.tokenizer, drawn)
