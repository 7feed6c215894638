"""Puts evaluation on Ray: pieces of image sets to features, images to texts. Ray carries names and results, no images:
the workers open the sets themselves (`dnd evaluate … --workers N`)."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path

from data_specs.progress import Progress
from pipeline.runner import run_tasks
from pipeline.workers import Workers
from tokenize_jobs.device import pick_device
from train.evaluation.features import load_extractor
from train.evaluation.fid import PIECE, SetFeatures, merge, pieces
from train.evaluation.ocr import OcrEngine, Reading, load_engine
from train.evaluation.reading_cache import missing_pictures, remember
from train.evaluation.sources import ImageSet, open_images

IMAGES_AT_ONCE = 8  # read by a worker at a time


def extract_on(workers: Workers, extractor: str, images: ImageSet) -> SetFeatures:
    """Features of a set, its pieces spread over workers; `extractor` as load_extractor takes it. The pieces are those
    of `extract` and are merged in the same order: the figures do not depend on the number of workers."""
    starts = range(0, len(images), PIECE)
    tasks = [(images.uri, start, min(start + PIECE, len(images))) for start in starts]
    return merge(
        _counted(run_tasks(partial(_extract_stage, extractor), tasks, workers), f"features {images.uri}", tasks)
    )


def read_on(workers: Workers, engine: OcrEngine, cache: Path, sets: Mapping[str, tuple[ImageSet, list[int]]]) -> None:
    """Has workers read what the cache lacks of the chosen pictures of each set. What they read is written down as it
    comes, so that a killed run goes on, and reading here afterwards finds it all.

    Args:
        workers: where to read.
        engine: what reads; the workers load the same.
        cache: JSON Lines file of what was read.
        sets: {kind: (pictures, chosen indices)}.
    """
    for kind, (pictures, chosen) in sets.items():
        missing = missing_pictures(pictures, chosen, engine, cache)
        groups = [missing[i : i + IMAGES_AT_ONCE] for i in range(0, len(missing), IMAGES_AT_ONCE)]
        tasks = [(pictures.uri, [wanted.number for wanted in group]) for group in groups]
        progress = Progress(f"read {kind}", len(missing), "images")
        stage = partial(_read_stage, engine.spec, engine.version)
        for group, readings in zip(groups, run_tasks(stage, tasks, workers), strict=True):
            found = zip(group, readings, strict=True)
            remember(cache, engine, [(wanted.key, wanted.image, reading) for wanted, reading in found])
            progress.advance(len(group))


def _counted(parts: Iterator[SetFeatures], task: str, tasks: list[tuple[str, int, int]]) -> Iterator[SetFeatures]:
    progress = Progress(task, tasks[-1][2], "images")
    for part, (_, start, stop) in zip(parts, tasks, strict=True):
        progress.advance(stop - start)
        yield part
    progress.finish()


def _extract_stage(extractor: str) -> Callable[[tuple[str, int, int]], SetFeatures]:
    """Runs once in each worker: loads the network and returns the stage (set, start, stop) -> features of one piece."""
    network, open_once = load_extractor(extractor, pick_device().type), lru_cache(4)(open_images)

    def stage(task: tuple[str, int, int]) -> SetFeatures:
        uri, start, stop = task
        return next(pieces(open_once(uri), network, start, stop))

    return stage


def _read_stage(spec: str, version: str) -> Callable[[tuple[str, list[int]]], list[Reading]]:
    """Runs once in each worker: loads the engine and returns the stage (set, indices) -> readings.

    Raises:
        ValueError: the engine here is not of the version that the results will name.
    """
    engine = load_engine(spec, pick_device().type, num_workers=1)
    if engine.version != version:
        raise ValueError(f"{engine.name} is {engine.version} on {socket.gethostname()}, but {version} where it began")
    open_once = lru_cache(4)(open_images)

    def stage(task: tuple[str, list[int]]) -> list[Reading]:
        pictures = open_once(task[0])
        return engine.read([pictures[index].image for index in task[1]])

    return stage
