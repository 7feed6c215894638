"""Checkpoints by name: `dnd pretrained` fetches released ones, or what `dnd push` published, into a root.

Which commit and which bytes they were stands in ROOT/pretrained.json.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data_specs import storage
from data_specs.digest import file_digest
from data_specs.root import read_spec, record_spec
from data_specs.shape import SIZES, CodeShape
from data_specs.spec import load_spec
from infra.hub import Fetched, Origin, downloaded_commit, fetch

RELEASED = "hf://leonardPKU/DnD-Transformer"
PICTURES = 8


class Release(NamedTuple):
    """What the authors released for a preset: folders of their repository, transformers by size ("" stands for the
    preset's own), and the published figures."""

    preset: str
    tokenizer: str
    transformers: dict[str, str]
    figures: str


RELEASES = (
    Release(
        "imagenet_16x16x2",
        "2d_tokenzier_imagenet",  # spelt so there
        {"XXL": "trained_dnd_transformer_imagenet_2layer/XXL", "XXXL": "trained_dnd_transformer_imagenet_2layer/XXXL"},
        "rFID .93; gFID 2.58 (XXL, guidance 2), 2.21 (XXXL, guidance 1.7)",
    ),
    Release("imagenet_16x16x4", "2d_tokenizer_imagenet_depth4", {}, "rFID .60; no transformer was released"),
    Release("imagenet512_32x32x2", "2d_tokenizer_imagenet512", {}, "rFID .42; no transformer was released"),
    Release(
        "text_image_24x24x1",
        "2d_tokenizer_text_image",
        {"XXL": "trained_dnd_transformer_text_image_1layer/XXL"},
        "sampled at temperature .1",
    ),
    Release(
        "arxiv_image_16x16x8",
        "2d_tokenizer_arxiv_image",
        {"XXL": "trained_dnd_transformer_arxiv_image_8layer/XXL"},
        "sampled at temperature .1",
    ),
)


def checkpoint_in(path: Path) -> Path:
    """Return the checkpoint at a path: the file itself, or the folder's one .pt file."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"{path}: a folder with one .pt file is wanted; here: {names}")
    return found[0]


def import_tokenizer(path: Path, config: Path | None, root: str, ema: bool = False, preset: str | None = None) -> str:
    """Import a released RQ-VAE into ROOT/tokenizer and return a line that says what it is.

    Raises:
        ValueError: it cannot be read, its codes are not of the `preset`'s shape, or there is a tokenizer already.
    """
    from tokenize_jobs.weights import import_tokenizer as read
    from tokenize_jobs.weights import save_tokenizer

    model = read(path, config or path.with_name("config.yaml"), ema=ema)
    if preset is not None:
        wanted = CodeShape.of(load_spec(preset).shape)
        remedy = "give the checkpoint's own preset"
        wanted.refuse_other(CodeShape.of(model.config), str(path), f"those of {preset}", remedy)
    folder = unused(storage.join(root, "tokenizer"))
    with storage.writable_folder(folder) as local:
        save_tokenizer(model, local)
    return f"{folder}: codes {list(model.config.code_shape)}, codebook of {model.config.codebook_size}"


def import_transformer(path: Path, preset: str | None, size: str | None, root: str) -> str:
    """Import a released transformer into ROOT/transformer and return a line that says what it is.

    Args:
        preset: or a YAML file, that it was trained by; None: the root's own spec.

    Raises:
        ValueError: it is of another preset or size.
    """
    from train.model import config_of
    from train.weights import import_transformer as read
    from train.weights import size_of_released

    spec = read_spec(preset, root, [f"transformer.size={size}"] if size else [])
    spec.require("transformer")
    found = size_of_released(path) if not size and spec.transformer.size else None
    if found and SIZES[found][0] == spec.transformer.dimensions[0]:  # XXL and XXXL share their presets
        size = found
        spec = read_spec(preset, root, [f"transformer.size={found}"])
    folder = unused(storage.join(root, "transformer"))
    with storage.writable_folder(folder) as local:
        read(path, local, config_of(spec))
    record_spec(spec, root, "transformer", ("shape", "transformer"))
    return f"{folder}: {size or spec.transformer.size} of {preset or spec.name}"


def unused(folder: str) -> str:
    """Return the folder, provided that nothing was trained or imported into it before.

    Raises:
        ValueError: there is something already.
    """
    if next(iter(storage.list_files(folder)), None):
        raise ValueError(f"{folder}: there is something already; choose another --root or remove it first")
    return folder


def pretrained(name: str, size: str | None, root: str, source: str = RELEASED) -> list[str]:
    """Fetch both halves of a release, or a root that `dnd push` published, into ROOT, and draw eight pictures.

    Args:
        name: the preset of a release, or the address of a published root.
        source: where the releases' folders lie: another repository, or a local copy of it.

    Returns:
        Lines that say what was done.
    """
    release = next((release for release in RELEASES if release.preset == name), None)
    if release is None:
        return _published_root(name, root)
    sizes = release.transformers
    chosen = size or next(iter(sizes), None)
    if size and size not in sizes:
        raise ValueError(f"{name}: no transformer of size {size} was released; there is {', '.join(sizes) or 'none'}")
    wanted = {"tokenizer": release.tokenizer} | ({} if chosen is None else {"transformer": sizes[chosen]})
    for half in wanted:
        unused(storage.join(root, half))
    fetched = {half: fetch(f"{source.rstrip('/')}/{path}", [*wanted.values()]) for half, path in wanted.items()}
    paths = {half: checkpoint_in(one.path) for half, one in fetched.items()}  # of both, before one is in place
    origins = {half: _origin(fetched[half], path) for half, path in paths.items()}
    lines = [import_tokenizer(paths["tokenizer"], None, root, preset=name)]
    if chosen is not None:
        lines.append(import_transformer(paths["transformer"], name, chosen or None, root))
    else:
        record_spec(load_spec(name), root, "tokenizer", ("shape", "tokenizer"))
        lines.append(f"{name}: {release.figures}")
    return lines + _recorded(root, origins)


def _recorded(root: str, origins: Mapping[str, Origin]) -> list[str]:
    """Write where the halves came from and, where both are there, draw with them."""
    storage.write_text(storage.join(root, "pretrained.json"), json.dumps(origins, indent=1, sort_keys=True) + "\n")
    return [draw_first(root)] if len(origins) == 2 else []


def _origin(fetched: Fetched, path: Path) -> Origin:
    commit = {"commit": found} if "commit" not in fetched.origin and (found := downloaded_commit(path)) else {}
    return {**fetched.origin, **commit, "file": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _published_root(address: str, root: str) -> list[str]:
    """Fetch what `dnd push` published, a root's tokenizer, transformer and spec; return lines that say so."""
    fetched = fetch(address)
    halves = [half for half in ("tokenizer", "transformer") if (fetched.path / half).is_dir()]
    if not halves:
        known = ", ".join(release.preset for release in RELEASES)
        raise ValueError(f"{address}: neither a release ({known}) nor a root that `dnd push` published")
    spec = fetched.path / "spec.yaml"
    text = load_spec(spec).to_yaml() if spec.is_file() else ""  # refused before anything is in place
    folders = {half: unused(storage.join(root, half)) for half in halves}
    for half, folder in folders.items():
        with storage.writable_folder(folder) as local:
            shutil.copytree(fetched.path / half, local, dirs_exist_ok=True)
    if text and not storage.exists(storage.join(root, "spec.yaml")):
        storage.write_text(storage.join(root, "spec.yaml"), text)
    lines = [f"{folder}: from {address}" for folder in folders.values()]
    return lines + _recorded(root, {half: {**fetched.origin, "file": half} for half in halves})


def draw_first(root: str) -> str:
    """Draw eight pictures by the root's sampling options into ROOT/samples/first.png."""
    import numpy as np

    from pipeline.png import encode_photo
    from tokenize_jobs.decode import grid
    from train.generate import load_root

    section = read_spec(None, root).sample
    options = {name: getattr(section, name) for name in ("guidance", "temperature", "top_k", "top_p")}
    pictures = load_root(root, ema=section.ema).pictures(PICTURES, **options)
    uri = storage.join(root, "samples", "first.png")
    storage.write(uri, encode_photo(grid([np.asarray(picture) for picture in pictures])))
    return f"pictures: {uri}"
