"""The file of an experiment, and the `dnd` commands that it stands for.

An experiment is a spec and its arms: keys that differ. Each arm is trained once a seed under a root of its own,
ROOT/ARM-SEED. It takes what its keys leave alone, images, tokenizer or codes, from another root; an arm without keys of
its own is ROOT/base-SEED, which all experiments of one ROOT share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, ValidationError

from data_specs import storage
from data_specs.shape import Section
from data_specs.spec import Spec, load_spec

Keys = dict[str, Any]  # dotted key of the spec -> value
STAGES = ("train-tokenizer", "tokenize", "train")
FIRST = {"shape": "train-tokenizer", "tokenizer": "train-tokenizer", "tokenize": "tokenize"}  # that reads a part


class Experiment(Section):
    """What a file of examples/experiments says."""

    title: str = Field(description="what is compared")
    base: str = Field(description="the spec of all arms: a preset or a file")
    keys: Keys = Field({}, description="keys of all arms")
    seeds: list[int] = Field([0, 1], min_length=1, description="of the transformer's training and the samples")
    arms: dict[str, Keys] = Field(min_length=1, description="keys of each arm")
    samplings: dict[str, Keys] = Field({"default": {}}, min_length=1, description="keys of each way of drawing samples")
    reconstruct: bool = Field(False, description="also score what the arms' tokenizers keep")


class Run(NamedTuple):
    """An arm with a seed: its root, its keys, and the root and stage that it begins from."""

    arm: str
    seed: int
    root: str
    keys: Keys
    taken_from: str
    first_stage: str


def read_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment file.

    Args:
        overrides: `key=value`, keys of all arms, also in place of an arm's own.

    Raises:
        ValueError: it is none, or an arm's spec cannot work; names the file.
    """
    try:
        experiment = Experiment.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path}: no experiment: {error}") from None
    more = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in overrides)}
    arms = {arm: {key: more.get(key, value) for key, value in keys.items()} for arm, keys in experiment.arms.items()}
    experiment = experiment.model_copy(update={"keys": experiment.keys | more, "arms": arms})
    for run in runs_of(experiment, "", ""):
        for sampling in experiment.samplings.values():
            try:
                spec_of(experiment, run, sampling)
            except ValueError as error:
                raise ValueError(f"{path}: arm {run.arm}: {error}") from None
    return experiment


def as_overrides(keys: Keys) -> list[str]:
    """Return the keys as `--set` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def runs_of(experiment: Experiment, root: str, base_root: str) -> list[Run]:
    """Return all runs, seed by seed, so that the first seed is whole before the second begins."""
    return [
        _run(experiment, root, base_root, arm, seed, index)
        for index, seed in enumerate(experiment.seeds)
        for arm in experiment.arms
    ]


def _run(experiment: Experiment, root: str, base_root: str, arm: str, seed: int, index: int) -> Run:
    """Return the run of an arm with its seed; runs of later seeds take codes and tokenizer from the first one."""
    own = experiment.arms[arm]
    keys = experiment.keys | own
    folder = re.sub(r"[^\w.-]+", "-", arm).strip("-") if own else "base"
    roots = [storage.join(root, f"{folder}-{one}") for one in experiment.seeds[: index + 1]]
    first = min((FIRST.get(key.partition(".")[0], "train") for key in keys), key=STAGES.index, default="train")
    begins, source = ("train", roots[0]) if index else (first, base_root)
    return Run(arm, seed, roots[-1], keys | {"seed": seed}, source, begins)


def commands(experiment: Experiment, run: Run) -> Iterator[list[str]]:
    """Yield the words after `dnd` of each command that makes a run, in order."""
    part = spec_of(experiment, run)
    for stage in STAGES[STAGES.index(run.first_stage) :]:
        taken = ["--from", run.taken_from] if stage == run.first_stage else []
        yield [stage, *_on(experiment, run, {}), *taken]
    if experiment.reconstruct and run.seed == experiment.seeds[0]:
        yield ["reconstruct", *_on(experiment, run, {}), "--workers", "0"]
    for name, keys in experiment.samplings.items():
        yield ["sample", *_on(experiment, run, keys | {"sample.name": name}), "--workers", "0"]
        words = ["--samples", f"samples/{name}/images", "--num", str(part.evaluate.ocr_images)]
        words += ["--temperatures", "", "--name", name]
        words += ["--reconstructions", "reconstructions/val/images"] if experiment.reconstruct else []
        yield ["evaluate", "legibility", run.root, *words]


def spec_of(experiment: Experiment, run: Run, sampling: Keys | None = None) -> Spec:
    """Return the spec of a run."""
    return load_spec(experiment.base, as_overrides(run.keys | (sampling or {})))


def _on(experiment: Experiment, run: Run, more: Keys) -> Sequence[str]:
    sets = [word for override in as_overrides(run.keys | more) for word in ("--set", override)]
    return [experiment.base, "--root", run.root, *sets]
