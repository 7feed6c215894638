"""The spec: one YAML file that describes a run, read into typed models that refuse what cannot work.

`dnd presets` lists the files beside this one; `dnd render SPEC --set train.micro_batch_size=8` overrides by dotted key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails

from data_specs.sections import Evaluate, Given, Render, Sample, Tokenize, Tokenizer, Train, Transformer
from data_specs.shape import MAX_CODES, CodeShape, Section, Shape
from data_specs.source import unknown_key
from data_specs.text import one_line

PRESETS = Path(__file__).parent / "presets"
SECTIONS = ("render", "tokenizer", "tokenize", "transformer", "train", "sample", "evaluate")  # of a spec, by stage
KEYS_SHOWN = 10  # of those that one message names
_MISSING: Any = None  # a section that a spec file leaves out: typed as if it were there, since `require` sees to it


class Spec(Section):
    """A whole run. The sections of stages that are not used may be missing; `require` says which a command needs."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="name of the run: letters, digits, _ and -")
    seed: int = Field(0, ge=0, lt=2**31, description="what all random numbers of the run come from")
    shape: Shape
    render: Render = Field(default=_MISSING, description="documents to image shards")
    tokenizer: Tokenizer = Field(default=_MISSING, description="the RQ-VAE and its training")
    tokenize: Tokenize = Tokenize()
    transformer: Transformer = Field(default=_MISSING, description="the DnD transformer")
    train: Train = Field(default=_MISSING, description="training of the transformer")
    sample: Sample = Sample()
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _stages_agree(self) -> Spec:
        if self.transformer and len(self.transformer.head_layers) != self.codes.depth:
            raise ValueError(
                f"transformer.head_layers has {len(self.transformer.head_layers)} entries for codes of depth "
                f"{self.codes.depth}: give one layer for each depth"
            )
        if self.codes.codebook_size > MAX_CODES:
            raise ValueError(
                f"tokenize.flatten: {self.shape.depth} codebooks of {self.shape.codebook_size} are more codes than "
                f"uint16 holds ({MAX_CODES})"
            )
        if self.tokenizer:
            self._reduction_fits()
        if self.render and self.render.crop_size and self.render.crop_size < self.shape.image_size:
            raise ValueError(
                f"render.crop_size {self.render.crop_size} is below shape.image_size {self.shape.image_size}"
            )
        if self.render and (self.render.store == "ten_crop") != (self.tokenize.views == "ten_crop"):
            raise ValueError("render.store and tokenize.views must both be ten_crop or neither")
        if self.render and self.render.store == "whole" and self.tokenize.views != "centre":
            raise ValueError("render.store whole keeps images that are not square: set tokenize.views to centre")
        if self.render and any(source.document_kind == "text" for source in self.render.sources):
            self._text_has_room()
        return self

    def _text_has_room(self) -> None:
        style = self.render.text
        canvas = self.render.crop_size or self.shape.image_size
        most = max(style.columns)
        gaps = (max(style.columns) - 1) * style.sizes[1]
        if 2 * style.margins[1] + gaps + most * style.sizes[1] > canvas:
            raise ValueError(
                f"render.text: a margin of {style.margins[1]} px and {most} columns leave no room for letters of "
                f"{style.sizes[1]} px on {canvas} px"
            )

    def _reduction_fits(self) -> None:
        reduction = self.shape.image_size // self.shape.grid[0]
        levels = len(self.tokenizer.channel_multipliers)
        reduces = self.tokenizer.patch * 2 ** (levels - 1)
        if self.shape.grid[0] != self.shape.grid[1] or reduction % reduces:
            raise ValueError(
                f"tokenizer.patch and the {levels} levels of channel_multipliers reduce by {reduces}, but image_size / "
                f"grid is {reduction}: patch * 2^(levels - 1) must divide that"
            )

    @model_validator(mode="after")
    def _sample_fits(self) -> Spec:
        section = self.sample
        if section.classes not in ("uniform", "per_class") and not section.listed_classes:
            raise ValueError(
                f"sample.classes {section.classes} names no class: give a list or a rising range such as 0-9"
            )
        for name, most in (("guidance", inf), ("temperature", inf), ("top_k", inf), ("top_p", 1)):
            value = getattr(section, name)
            values = value if isinstance(value, list) else [value]
            if isinstance(value, list) and len(value) != self.codes.depth:
                raise ValueError(f"sample.{name} {value}: give one number, or {self.codes.depth} (one per depth)")
            if not all(0 <= number <= most for number in values):
                bound = "" if most == inf else f" and at most {most}"
                raise ValueError(f"sample.{name} {value} must be at least 0{bound}")
        if section.guidance_interval[0] > section.guidance_interval[1]:
            raise ValueError(f"sample.guidance_interval {list(section.guidance_interval)} must rise")
        if section.given:
            self._given_fits(section.given)
        if self.transformer:
            self._sample_fits_transformer()
        return self

    def _given_fits(self, given: Given) -> None:
        rows, columns = self.shape.grid
        if self.tokenize.flatten:
            raise ValueError("sample.given names positions and depths: not with tokenize.flatten, which has no depths")
        if given.hole and (given.hole[2] > rows or given.hole[3] > columns):
            raise ValueError(f"sample.given.hole {list(given.hole)} leaves the grid of {rows} x {columns} positions")
        if given.depths and given.depths >= (depth := self.shape.depth):
            raise ValueError(
                f"sample.given.depths {given.depths} leaves nothing to draw: shape.depth is {depth}, give fewer"
            )

    def _sample_fits_transformer(self) -> None:
        section = self.sample
        number = self.transformer.num_classes
        if outside := [cls for cls in section.listed_classes if not 0 <= cls < number]:
            raise ValueError(f"sample.classes holds {outside[0]}: the transformer's classes are 0..{number - 1}")
        if section.is_guided and not self.transformer.class_dropout:
            raise ValueError(
                f"sample.guidance {section.guidance} needs a model trained with transformer.class_dropout: use 1"
            )

    def require(self, *sections: str) -> None:
        """Refuse a spec that lacks a section which a command works by.

        Raises:
            ValueError: names the first section that is missing.
        """
        for section in sections:
            if getattr(self, section) is None:
                raise ValueError(f"spec {self.name}: {section}: is missing, and this command works by it; add it")

    def changed(self, section: str, **values: object) -> Spec:
        """Return the spec with other values of keys of a section, which are not checked anew."""
        changed = getattr(self, section).model_copy(update=values)
        return self.model_copy(update={section: changed})

    @property
    def codes(self) -> CodeShape:
        """The shape of the codes that code shards hold and the transformer learns."""
        codes = CodeShape.of(self.shape)
        return codes.flattened() if self.tokenize.flatten else codes

    @property
    def stored_size(self) -> int:
        """Side of a stored training image, pixels: int(1.1 image_size) where ten crops will be cut from it."""
        return int(self.shape.image_size * 1.1) if self.render.store == "ten_crop" else self.shape.image_size

    def to_yaml(self) -> str:
        """Return the resolved spec, as ROOT/spec.yaml holds it."""
        return yaml.safe_dump(self.tree(), sort_keys=False)

    def tree(self) -> dict[str, JsonValue]:
        """Return the resolved spec as YAML's plain types, without the sections that are missing."""
        return self.model_dump(mode="json", exclude={section for section in SECTIONS if getattr(self, section) is None})


def presets() -> list[str]:
    """Return the names of the presets that come with the project."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_spec(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a preset by name or a YAML file, with `a.b=c` overrides.

    A file may name another spec under `base:`; its own keys are laid over that one.

    Raises:
        ValueError: the spec cannot work; the message names file, key and remedy.
    """
    path = _find(name_or_path)
    return _resolved(_read(path), str(path), overrides)


def parse_spec(text: str | bytes, origin: str, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec from its YAML text (ROOT/spec.yaml, local or on S3); `origin` names it in errors."""
    return _resolved(_mapping(text, origin), origin, overrides)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    preset = PRESETS / f"{name_or_path}.yaml"
    if preset.is_file():
        return preset
    if path.is_dir():
        raise ValueError(f"{name_or_path}: is a folder, and a SPEC is a preset or a YAML file; a root is --root {path}")
    raise ValueError(f"{name_or_path}: no such file and no preset of that name; presets: {', '.join(presets())}")


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, object]:
    tree = _mapping(path.read_bytes(), str(path))
    if "base" not in tree:
        return tree
    base = str(tree.pop("base"))
    below = path.parent / base if (path.parent / base).is_file() else _find(base)
    if below.resolve() in (path.resolve(), *above):
        raise ValueError(f"{path}: base: {base} leads back to itself; name another file or a preset")
    return laid_over(_read(below, (path.resolve(), *above)), tree)


def _mapping(text: str | bytes, origin: str) -> dict[str, object]:
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a number or date that Python refuses
        raise ValueError(f"{origin}: not YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{origin}: a spec is a mapping of keys, not {type(tree).__name__}")
    return tree


def laid_over(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Return a tree with the keys of another laid over its own, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _set(tree: dict[str, object], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {override}: write key=value, for instance train.micro_batch_size=8")
    *parents, leaf = key.split(".")
    node: object = tree
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else _element(node, parent, key)
    if isinstance(node, list):
        _element(node, leaf, key)
        node[int(leaf)] = _value(value, override)
    elif isinstance(node, dict):
        node[leaf] = _value(value, override)
    else:
        raise ValueError(f"--set {override}: {'.'.join(parents)} is a value, not a mapping")


def _element(values: object, step: str, key: str) -> object:
    if not isinstance(values, list) or not step.isdigit() or int(step) >= len(values):
        raise ValueError(f"--set {key}: there is no entry {step!r}; lists are counted from 0")
    return values[int(step)]


def _value(text: str, override: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ValueError(f"--set {override}: the value is not YAML") from None


def _resolved(tree: dict[str, object], origin: str, overrides: Sequence[str]) -> Spec:
    for override in overrides:
        _set(tree, override)
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_explain(origin, error, tree, overrides)) from None


def _explain(origin: str, error: ValidationError, tree: dict[str, object], overrides: Sequence[str]) -> str:
    """One line a mistake: file, key, what is wrong and what would be right, and the --set that gave it.

    Numbers that are not finite are one mistake: what writes such a spec writes many.
    """
    faults = [(".".join(_steps(fault["loc"], tree)), fault) for fault in error.errors()]
    not_finite = {key for key, fault in faults if fault["type"] == "finite_number"}
    lines = dict[tuple[str, str], list[str]]()
    for key, fault in faults:
        is_finite = key not in not_finite
        if is_finite or fault["type"] == "finite_number":
            set_here = [f" (--set {text})" for text in overrides if _sets(text, key)]
            message = _message(key, fault) + (set_here[-1] if set_here else "")
            lines.setdefault((key if is_finite else "", message), []).append(key or "(whole spec)")
    return "\n".join(f"{origin}: {_listed(keys)}: {message}" for (_, message), keys in lines.items())


def _message(key: str, fault: ErrorDetails) -> str:
    if fault["type"] == "extra_forbidden":
        unknown = str(fault["loc"][-1])  # may have dots of its own
        parents = key.removesuffix(unknown).rstrip(".").split(".")
        return unknown_key(unknown, known_keys(parents) or ["see `dnd presets`"])
    return fault["msg"].removeprefix("Value error, ")


def _steps(loc: tuple[int | str, ...], tree: object) -> Iterator[str]:
    """Return the steps of a place in a spec's tree, without pydantic's names for the alternatives that a value has."""
    for step in loc:
        if isinstance(tree, dict):
            yield str(step)
            tree = tree.get(step)
        elif isinstance(tree, list) and isinstance(step, int):
            yield str(step)
            tree = tree[step] if step < len(tree) else None


def _listed(keys: list[str]) -> str:
    more = len(keys) - KEYS_SHOWN
    return ", ".join(keys[:KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _sets(override: str, key: str) -> bool:
    """Whether an override gives a key's value."""
    steps = iter(key.split("."))
    return all(step in steps for step in override.partition("=")[0].split("."))


def known_keys(steps: Sequence[str]) -> list[str]:
    """Return the keys of the section at a place of a spec, of a list those of an entry; none where is no section."""
    section: type[BaseModel] | None = Spec
    for step in steps:
        if field := section.model_fields.get(step) if section else None:
            types = [getattr(one, "__origin__", one) for one in (field.annotation, *get_args(field.annotation))]
            section = next((one for one in types if isinstance(one, type) and issubclass(one, BaseModel)), None)
    return list(section.model_fields) if section else []
