"""Lets the tests of this folder import what lies here and in its neighbours, which pytest's importlib mode does not."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "train")]
os.environ["DND_WANDB"] = "0"
