"""What the figures of ROOT/evaluation/summary.json are worth: worked or look here, and what each of them means."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from data_specs.progress import clock
from data_specs.records import RealWords, Summary

PSNR = 20.0  # dB: below, letters of a few pixels dissolve
KEPT_WORDS = 0.8  # of the real words of real pictures, that reconstructions should keep
READ_WORDS = 0.8  # of the words that OCR reads in real pictures, that should be real


class Figure(NamedTuple):
    """A figure of the summary: as it is shown, whether it is as it should be (None: not measured), and in words."""

    name: str
    shown: str
    worked: bool | None
    means: str
    look: str

    @property
    def verdict(self) -> str:
        """One word or two."""
        return "not measured" if self.worked is None else "worked" if self.worked else "look here"


def figures(summary: Summary) -> list[Figure]:
    """Return the five figures of a summary, in the order in which the stages made them."""
    words = summary.words
    return [
        _words(
            "real",
            words.real,
            READ_WORDS,
            "share of the words read in real pictures that stand in the training text: the ceiling of the next ones",
            "the pictures are hard to read: look at them (dnd look), larger type or images (render.text, render.pages)",
        ),
        _reconstruction(summary.reconstruction.psnr),
        _words(
            "reconstructed",
            words.reconstructed,
            KEPT_WORDS * ((words.real and words.real.share) or 1.0),
            "the same after a picture has become codes and come back: what the tokenizer keeps of the text",
            "the tokenizer loses letters: more tokenizer.steps, a larger shape.depth or codebook_size",
        ),
        _bits(summary.bits_per_code, summary.context_bits_per_code),
        _words(
            "generated",
            words.generated,
            words.aim,
            "the same in pictures that the transformer drew from nothing",
            "it scribbles: more train.steps, or a lower sample.temperature",
        ),
    ]


def _words(kind: str, words: RealWords | None, least: float, means: str, look: str) -> Figure:
    share = words.share if words else None
    shown = "none" if share is None else f"{share:.0%}"
    return Figure(f"real words, {kind}", shown, None if share is None else share >= least, means, look)


def _reconstruction(psnr: float | None) -> Figure:
    return Figure(
        "reconstruction",
        "exact" if psnr is None else f"{psnr:.1f} dB",
        psnr is None or psnr >= PSNR,
        "PSNR of pictures that became codes and came back: 20 dB is legible, above 30 the eye sees no difference",
        "the tokenizer is too coarse: more tokenizer.steps, a larger shape.depth",
    )


def _bits(bits: float | None, counts: float) -> Figure:
    return Figure(
        "bits per code",
        "none" if bits is None else f"{bits:.2f}",
        None if bits is None else bits < counts,
        f"how well the transformer foresees a code, less is better; counting neighbours alone reaches {counts:.2f}",
        "it has learnt less than counting gives: more train.steps, or another train.learning_rate",
    )


def verdict_lines(summary: Summary, took: Mapping[str, float], root: str) -> Iterator[str]:
    """Yield what a user is told after the whole run: the figures, each stage's time, and what to try next.

    Args:
        took: seconds of each stage in this run, by name.
    """
    for figure in figures(summary):
        yield f"{figure.verdict:12} {figure.name}: {figure.shown}"
        yield f"{'':12} {figure.means}"
        if figure.worked is False:
            yield f"{'':12} {figure.look}"
    stages = ", ".join(f"{name} {clock(seconds)}" for name, seconds in took.items())
    yield from ("", f"took {clock(sum(took.values()))}: {stages}", "", "Try next:")
    yield from (f"    {command}" for command in next_commands(root))


def next_commands(root: str) -> list[str]:
    """Return three commands that run as they stand, from where this one was started."""
    dnd = shlex.join(program())
    here = shlex.quote(_from_here(root))
    return [
        f"{dnd} sample --root {here} --set sample.name=cold --set sample.temperature=0.5  # legible, less varied",
        f"{dnd} look {here} --boxes  # what it learnt from, word by word",
        f"{dnd} spec --new > mine.yaml  # your own PDFs or text; then: {dnd} run mine.yaml --root runs/mine",
    ]


def program() -> list[str]:
    """Return how `dnd` was called, in words that a shell takes: it may stand on no PATH."""
    called = Path(sys.argv[0])
    found = shutil.which("dnd")
    if found and called.name == "dnd" and called.resolve() == Path(found).resolve():
        return ["dnd"]
    if called.name == "dnd" and os.access(called, os.X_OK):
        return [_from_here(str(called.absolute()))]
    return [_from_here(sys.executable), "-m", "infra.cli"]


def _from_here(path: str) -> str:
    """Return a local path relative to the working directory where it lies below that, else unchanged."""
    here = f"{Path.cwd()}/"
    return path.removeprefix(here) if path.startswith(here) else path
