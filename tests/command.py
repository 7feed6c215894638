"""Runs the `dnd` command as a user does."""

from __future__ import annotations

import subprocess
import sys


def dnd(*arguments: object, timeout: int = 800) -> subprocess.CompletedProcess[str]:
    """Runs the command and returns what it said."""
    command = [sys.executable, "-m", "infra.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
