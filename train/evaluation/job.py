"""Puts evaluation on Ray: pieces of image sets to features, images to texts. Ray carries ranges and results, no images:
the workers open the sets themselves (`dnd evaluate … --workers N`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from data_specs.progress import Progress
from data_specs.records import RangeUnit
from pipeline.running import run_units
from pipeline.workers import Workers
from tokenize_jobs.device import pick_device
from train.evaluation.features import load_extractor
from train.evaluation.fid import PIECE, SetFeatures, merge, pieces
from train.evaluation.ocr import OcrEngine, load_engine
from train.evaluation.reading_cache import Read, image_digest, missing_pictures, remember
from train.evaluation.sources import ImageSet, open_images

IMAGES_AT_ONCE = 8  # read by a worker at a time
Made = TypeVar("Made")


def extract_on(workers: Workers, extractor: str, images: ImageSet) -> SetFeatures:
    """Extract the features of a set, its pieces spread over workers; `extractor` as load_extractor takes it.

    The pieces are those of `extract` and are merged in the same order: the figures do not depend on the
    number of workers.
    """
    setup = partial(_set_up_extraction, extractor, images.uri)
    return merge(_in_order(_run(setup, len(images), PIECE, workers, f"features {images.uri}")))


def read_on(workers: Workers, engine: OcrEngine, cache: Path, sets: Mapping[str, tuple[ImageSet, list[int]]]) -> None:
    """Have workers read what the cache lacks of the chosen pictures of each set.

    What they read is written down as it comes, so that a killed run goes on, and reading here afterwards finds
    it all.

    Args:
        workers: where to read.
        engine: what reads; the workers load the same.
        cache: JSON Lines file of what was read.
        sets: {kind: (pictures, chosen indices)}.
    """
    for kind, (pictures, chosen) in sets.items():
        missing = missing_pictures(pictures, chosen, engine, cache)
        setup = partial(_set_up_reading, engine.spec, engine.version, pictures.uri, missing)
        for _, read in _run(setup, len(missing), IMAGES_AT_ONCE, workers, f"read {kind}"):
            remember(cache, engine, read)


def _run(
    setup: Callable[[], Callable[[RangeUnit], Made]], total: int, step: int, workers: Workers, task: str
) -> Iterator[tuple[RangeUnit, Made]]:
    """Ranges of `step` images with their results, as they are done; the first that fails for good ends all."""
    firsts = range(0, total, step)
    units = [RangeUnit(unit=i, first=first, count=min(step, total - first)) for i, first in enumerate(firsts)]
    progress = Progress(task, total, "images")
    for done in run_units(units, len(units), setup, workers._replace(max_failures=1), progress) if units else ():
        if done.result is not None:
            assert isinstance(done.unit, RangeUnit)
            yield done.unit, done.result


def _in_order(results: Iterator[tuple[RangeUnit, Made]]) -> Iterator[Made]:
    """Yield the results in the order of their units."""
    ahead = dict[int, Made]()
    number = 0
    for unit, result in results:
        ahead[unit.unit] = result
        while number in ahead:
            yield ahead.pop(number)
            number += 1


def _set_up_extraction(extractor: str, uri: str) -> Callable[[RangeUnit], SetFeatures]:
    """Load the network, once in each worker, and return what computes the features of one piece of the set."""
    network = load_extractor(extractor, pick_device().type)
    images = open_images(uri)
    return lambda unit: next(pieces(images, network, unit.first, unit.first + unit.count))


def _set_up_reading(
    engine_spec: str, version: str, uri: str, indices: Sequence[int]
) -> Callable[[RangeUnit], list[Read]]:
    """Load the engine, once in each worker, and return what reads a range of the chosen images.

    Raises:
        ValueError: the engine here is not of the version that the results will name.
    """
    engine = load_engine(engine_spec, pick_device().type, num_workers=1)
    images = open_images(uri)
    if engine.version != version:
        raise ValueError(f"{engine.name} is {engine.version} on {socket.gethostname()}, but {version} where it began")

    def read(unit: RangeUnit) -> list[Read]:
        chosen = [images[index] for index in indices[unit.first : unit.first + unit.count]]
        readings = engine.read([picture.image for picture in chosen])
        return [(one.key, image_digest(one.image), reading) for one, reading in zip(chosen, readings, strict=True)]

    return read
