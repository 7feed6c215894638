"""What test_ocr_engines.py runs in children: a library that reads a picture's grey value."""

import os

import numpy as np

from train.evaluation.ocr.engine import Reading


def read(image: np.ndarray) -> Reading:
    """The value in words; 1 raises, 2 crashes, 3 spins for ever."""
    value = int(image[0, 0, 0])
    if value == 1:
        raise ValueError("one is bad")
    if value == 2:
        os.abort()
    while value == 3:
        pass
    return Reading(f"grey {value}")
