"""Puts evaluation on Ray: pieces of image sets to features, images to texts. Ray carries names and results, no images:
the workers open the sets themselves (`dnd evaluate … --workers N`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from data_specs import open_shards
from data_specs.progress import Progress
from data_specs.reader import ShardSet
from pipeline.runner import Workers, run_tasks
from tokenize_jobs.device import pick_device
from train.evaluation.features import load_extractor
from train.evaluation.fid import PIECE, SetFeatures, merge, pieces
from train.evaluation.ocr import TESSERACT, OcrEngine, Tesseract, load_engine
from train.evaluation.records import append_records, missing_records
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


def read_on(workers: Workers, engine: OcrEngine, name_or_path: str, record_file: Path, sets: dict[str, Any]) -> None:
    """Has workers read what the records lack; sets: {kind: (shard set, chosen indices)}. What they read is written down
    as it comes, so that a killed run goes on, and reading here afterwards finds it all."""
    for kind, (items, chosen) in sets.items():
        missing = missing_records(items, chosen, kind, engine.name, record_file)
        groups = [missing[i : i + IMAGES_AT_ONCE] for i in range(0, len(missing), IMAGES_AT_ONCE)]
        tasks = [(items.uri, [index for index, _ in group]) for group in groups]
        progress = Progress(f"read {kind}", len(missing), "images")
        for group, texts in zip(groups, run_tasks(partial(_read_stage, name_or_path), tasks, workers), strict=True):
            append_records(
                record_file, [{**record, "text": text} for (_, record), text in zip(group, texts, strict=True)]
            )
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


def _read_stage(name_or_path: str) -> Callable[[tuple[str, list[int]]], list[str]]:
    """Runs once in each worker: loads the engine and returns the stage (shard set, indices) -> texts."""
    one_core = name_or_path == TESSERACT
    engine = Tesseract(num_workers=1) if one_core else load_engine(name_or_path, pick_device().type)
    open_once = lru_cache(4)(open_shards)

    def stage(task: tuple[str, list[int]]) -> list[str]:
        items: ShardSet = open_once(task[0])
        return engine.read([items[index]["image"] for index in task[1]])

    return stage
