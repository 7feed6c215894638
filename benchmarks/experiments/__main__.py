"""Run an experiment, as far as it has not been run yet, and lay its arms beside each other.

python -m benchmarks.experiments examples/experiments/heads.yaml --from runs/demo --root runs/experiments
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.experiments.costs import Cost, measure
from benchmarks.experiments.experiment import Experiment, Run, commands, read_experiment, runs_of, spec_of
from benchmarks.experiments.results import rows_of, write
from data_specs import storage

Call = Callable[[Sequence[str]], None]  # runs `dnd` with these words, raises where it fails


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path, help="a file of examples/experiments")
    parser.add_argument("--from", dest="base_root", default="runs/demo", help="a finished root of the base spec")
    parser.add_argument("--root", default="runs/experiments", help="roots of the runs, tables and pictures lie here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of all arms")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring what an arm costs")
    given = parser.parse_args()
    try:
        experiment = read_experiment(given.experiment, given.set)
        print(run(experiment, given.experiment.stem, given.root, given.base_root, given.rounds))
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"{parser.prog}: {error}")


def dnd(words: Sequence[str]) -> None:
    """Run `dnd` in a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    print(shlex.join(["dnd", *words]), flush=True)
    subprocess.run([sys.executable, "-m", "infra.cli", *words], check=True)


def run(experiment: Experiment, name: str, root: str, base_root: str, rounds: int, call: Call = dnd) -> str:
    """Make the runs that are missing, then ROOT/NAME.md, .png and .svg; return the table.

    Args:
        root: the runs lie below, each a root of its own.
        base_root: what the arms take images, tokenizer and codes from.
        rounds: of measuring costs.
        call: runs `dnd`.
    """
    root = storage.absolute(root)
    base_root = storage.absolute(base_root)
    runs = runs_of(experiment, root, base_root)
    for one in runs:
        make(experiment, one, call)
    costs = measured(experiment, runs[: len(experiment.arms)], Path(root, f"{name}.costs.json"), rounds)
    return write(Path(root), name, experiment, rows_of(experiment, runs), costs)


def make(experiment: Experiment, one: Run, call: Call) -> None:
    """Make a run by its commands, skipping those that were already run for it."""
    record = Path(one.root, "commands.json")
    made = json.loads(record.read_text()) if record.exists() else []
    for words in commands(experiment, one):
        if words not in made:
            call(words)
            made.append(words)
            record.write_text(json.dumps(made, indent=1) + "\n")


def measured(experiment: Experiment, runs: Sequence[Run], record: Path, rounds: int) -> dict[str, Cost]:
    """Return what each arm costs; measure it only once, as long as the arms' specs stay the same."""
    specs = {one.arm: spec_of(experiment, one) for one in runs}
    trees = {arm: spec.tree() for arm, spec in specs.items()}
    made = json.loads(record.read_text()) if record.exists() else {}
    if made.get("specs") != trees:
        costs = measure([(specs[one.arm], one.root) for one in runs], rounds)
        made = {"specs": trees, "costs": dict(zip(specs, costs, strict=True))}
        record.write_text(json.dumps(made) + "\n")
    return {arm: Cost(*cost) for arm, cost in made["costs"].items()}


if __name__ == "__main__":
    main()
