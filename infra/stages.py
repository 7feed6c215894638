"""The stages of this project, a line for each file that registers some, and what else shows samples of a root."""

from __future__ import annotations

import pipeline.job  # noqa: F401
import tokenize_jobs.job  # noqa: F401
import train.reconstruct_job
import train.sample_job  # noqa: F401
from pipeline.stages import VIEWS

VIEWS |= {"images/README.md": "dnd card", "look": "dnd look", "report/index.html": "dnd report"}
