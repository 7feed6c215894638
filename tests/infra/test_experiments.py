"""The experiments of examples/experiments: every arm is a spec, and each runs here at its smallest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import ranks
from command import dnd
from PIL import Image

import infra.stages  # noqa: F401
from benchmarks.experiments.__main__ import run
from benchmarks.experiments.costs import Cost, median_seconds, training_flops
from benchmarks.experiments.experiment import Experiment, commands, read_experiment, runs_of, spec_of
from benchmarks.experiments.results import Figures, Row, ratios_svg, table
from data_specs.spec import load_spec
from infra.inherit import inherit
from pipeline.stages import find
from tokenize_jobs.training import fit as fit_tokenizer
from train.job import fit as fit_transformer

FILES = sorted((Path(__file__).resolve().parents[2] / "examples/experiments").glob("*.yaml"))
SMALL = {
    "render.sources": [{"kind": "docstrings", "passages": 60, "min_words": 6, "max_words": 12, "vocabulary": 50}],
    "render.val_share": 0.2,
    "tokenizer.steps": 2,
    "tokenizer.batch_size": 4,
    "transformer.width": 32,
    "transformer.num_heads": 2,
    "train.steps": 2,
    "train.batch_size": 4,
    "train.validation_images": 4,
    "train.validate_every": 2,
    "sample.num": 4,
    "evaluate.ocr_images": 4,
}
TRAININGS = {"train-tokenizer": fit_tokenizer, "train": fit_transformer}
SETS = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]


def call(words: Sequence[str]) -> None:
    """Runs `dnd`; of a training the rank alone, forked, where starting one would take longer than all else here."""
    if words[0] in TRAININGS:
        return train(words)
    done = dnd(*words, *(("--workers", "0") if words[0] == "tokenize" else ()))
    assert done.returncode == 0, done.stderr[-3000:]


def train(words: Sequence[str]) -> None:
    """What `dnd train` and `dnd train-tokenizer` do with these words."""
    after = {word: words[index + 1] for index, word in enumerate(words[:-1])}
    sets = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    spec, stage = load_spec(words[1], sets), find(words[0])
    assert stage
    if "--from" in words:
        list(inherit(stage, spec, after["--root"], after["--from"]))
    ranks.run(1, TRAININGS[words[0]], spec, after["--root"])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small root of the demo's spec with images, tokenizer and codes."""
    root = tmp_path_factory.mktemp("demo")
    sets = [word for one in SETS for word in ("--set", one)]
    for stage in (("render", "--workers", "0"), ("train-tokenizer",), ("tokenize", "--workers", "0")):
        call([stage[0], "demo", "--root", str(root), *sets, *stage[1:]])
    return root


def few(experiment: Experiment) -> Experiment:
    """The last arm beside the base, one seed, the last way of drawing samples beside the first."""
    arms, samplings = list(experiment.arms), list(experiment.samplings)
    base = next(arm for arm in arms if not experiment.arms[arm])
    return experiment.model_copy(
        update={
            "seeds": experiment.seeds[:1],
            "arms": {arm: experiment.arms[arm] for arm in dict.fromkeys((base, arms[-1]))},
            "samplings": {name: experiment.samplings[name] for name in dict.fromkeys((samplings[0], samplings[-1]))},
        }
    )


def in_short(path: Path) -> object:
    """Of the arms that make codes or a transformer anew those that make both run; `temperature` draws several times."""
    return pytest.param(path, marks=[pytest.mark.long] if path.stem in ("heads", "head-layers") else [])


@pytest.mark.parametrize("path", [in_short(path) for path in FILES], ids=lambda path: path.stem)
def test_an_experiment_runs_at_its_smallest_and_is_laid_out(path: Path, demo: Path) -> None:
    root = demo.parent / "experiments"  # one for all: the base is made once
    experiment = few(read_experiment(path, SETS))
    text = run(experiment, path.stem, str(root), str(demo), 1, call)
    rows = len(experiment.arms) * len(experiment.samplings)
    assert text.count("\n") == rows + 1 and (root / f"{path.stem}.md").read_text() == f"{text}\n"
    with Image.open(root / f"{path.stem}.png") as picture:
        assert picture.height == rows * 66 and np.asarray(picture).std() > 0
    assert (root / f"{path.stem}.svg").read_text().count("<text") >= rows
    again: list[Sequence[str]] = []
    assert run(experiment, path.stem, str(root), str(demo), 1, again.append) == text and not again


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_arm_has_a_spec_and_begins_where_its_keys_begin(path: Path) -> None:
    experiment = read_experiment(path)
    runs = runs_of(experiment, "/runs", "/demo")
    first, second = runs[: len(experiment.arms)], runs[len(experiment.arms) :]
    assert {run.taken_from for run in first} == {"/demo"} and {run.first_stage for run in second} == {"train"}
    assert [run.taken_from for run in second] == [run.root for run in first]
    for one in first:
        stages = [words[0] for words in commands(experiment, one)]
        own = {key.partition(".")[0] for key in experiment.arms[one.arm]}
        assert (stages[0] == "train-tokenizer") == bool(own & {"shape", "tokenizer"})
        assert ("tokenize" in stages) == bool(own & {"shape", "tokenizer", "tokenize"})


@pytest.mark.parametrize("name", ["depth", "heads"])
def test_arms_that_are_compared_train_with_the_same_flops(name: str) -> None:
    experiment = read_experiment(next(path for path in FILES if path.stem == name))
    specs = {run.arm: spec_of(experiment, run) for run in runs_of(experiment, "", "")}
    longest = specs.pop("flattened, as many images", specs[next(iter(specs))])
    flops = [training_flops(spec) for spec in specs.values()]
    assert max(flops) / min(flops) < 1.005
    images = {spec.train.steps * spec.train.batch_size for spec in (longest, specs.get("dnd", longest))}
    assert len(images) == 1


def test_a_key_of_all_arms_takes_the_place_of_an_arms_own(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("{title: t, base: demo, arms: {base: {}, short: {train.steps: 3}}}")
    runs = runs_of(read_experiment(file, ["train.steps=7"]), "/runs", "/demo")
    assert [(run.root, run.keys["train.steps"]) for run in runs[:2]] == [("/runs/base-0", 7), ("/runs/short-0", 7)]
    file.write_text("{title: t, base: demo, arms: {a: {train.stepz: 3}}}")
    with pytest.raises(ValueError, match=r"a\.yaml: arm a: .*stepz"):
        read_experiment(file)
    file.write_text("{title: t, base: demo, arm: {}}")
    with pytest.raises(ValueError, match=r"a\.yaml: no experiment: "):
        read_experiment(file)


def test_the_table_says_no_words_where_none_were_read_and_the_chart_leaves_them_out() -> None:
    read, unread = Figures(0.5, 128.0, 0.75, (0.6, 0.9), 12, None), Figures(0.25, 64.0, None, None, 0, None)
    rows = [Row("a", "a", 10, [read, unread], "")]
    line = table(rows, {"a": Cost(2e12, 100.4, 7.25)}).splitlines()[-1]
    assert line == "| a | 10 | 2 | 100 | 0.500, 0.250 | 128.0, 64.0 | 0.75 (0.60–0.90), no words | 12, 0 | 7.2 |"
    assert ratios_svg(rows, "t").count("<circle") == 1


def test_works_are_measured_in_turns() -> None:
    calls: list[str] = []
    assert len(median_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 2)) == 2
    assert calls == ["a", "b", "a", "b", "b", "a"]
