"""Files of a user's that are called as our packages are: none of our processes may import them."""

from __future__ import annotations

from pathlib import Path

NAMES = ("data_specs", "pipeline", "tokenize_jobs", "train", "infra", "torch", "numpy")


def write_namesakes(folder: Path) -> Path:
    """Writes them into a folder that a command runs in; returns the file that holds the names of those imported."""
    folder.mkdir(exist_ok=True)
    ran = folder / "ran"
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\nraise SystemExit(3)\n")
    return ran
