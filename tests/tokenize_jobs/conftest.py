"""Lets the tests of this folder import `image_sets`, which pytest's importlib mode does not; no wandb in tests."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["DND_WANDB"] = "0"
