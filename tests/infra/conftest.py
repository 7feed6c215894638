"""Lets the tests of this folder import `schemas`, and train's `code_sets`, which pytest's importlib mode does not."""

import sys
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parent),
    *(str(Path(__file__).parents[1] / name) for name in ("train", "pipeline", "tokenize_jobs")),
]
