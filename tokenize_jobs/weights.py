"""Tokenizers on disk: ours (tokenizer.safetensors + tokenizer.json) and the released ones (a .pt and its config.yaml).

Released files are read without running anything they name: only tensors and plain data, unknown objects are refused.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_specs import storage
from data_specs.local_files import open_file
from data_specs.records import CheckpointFile
from data_specs.text import printable
from tokenize_jobs.foreign import first_line, safe_torch_load
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig
from tokenize_jobs.tensors import DTYPES, whole_file, write_safetensors

WEIGHTS = "tokenizer.safetensors"
CONFIG = "tokenizer.json"
MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_VALUES = 2**14
NUMBERS = (*DTYPES, torch.float64)
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
SHOWN = 5  # names listed in a message
LONGEST = 100  # characters of a name in a message


# ---- ours ----------------------------------------------------------------------------------------------------------
def save_tokenizer(model: RQVAE, folder: str | Path) -> CheckpointFile:
    """Write tokenizer.safetensors and, last, tokenizer.json; return size and sha256 of the weights.

    Each file appears whole or not at all. A shared codebook is stored once, under the first depth. ValueError where a
    number is not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu() for name, tensor in stored_tensors(model).items()}
    written = write_safetensors(folder / WEIGHTS, tensors)
    storage.write_text(str(folder / CONFIG), model.config.to_json() + "\n")
    return written


def load_tokenizer(
    folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, **changed: Any
) -> RQVAE:
    """Load the tokenizer of a folder or URI, in eval mode; no other file than its two is fetched.

    Args:
        dtype: of all but the codebooks, which stay float32.
        changed: fields of its configuration that are to be others: how its codebook learns.

    Raises:
        ValueError: names a bad file.
    """
    uri = storage.join(str(folder), WEIGHTS)
    model = _empty_model(replace(read_config(str(folder)), **changed), device, dtype)
    try:
        with safe_open(storage.local_copy(uri), "pt") as file:
            wanted = stored_tensors(model)
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            _refuse_misfit(uri, shapes, _shapes_of(wanted))
            for name, tensor in wanted.items():  # one at a time
                tensor.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{uri}: no readable tokenizer weights ({error})") from None
    return model


def read_config(folder: str) -> RQVAEConfig:
    """Read the configuration of a tokenizer's folder or URI; ValueError names a file that cannot be read."""
    uri = storage.join(folder, CONFIG)
    try:
        return RQVAEConfig.from_json(storage.read_text(uri))
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri}: no readable tokenizer configuration ({error})") from None


def _empty_model(config: RQVAEConfig, device: str | torch.device, dtype: torch.dtype) -> RQVAE:
    """Return a model whose weights are yet to be filled in, without the time and memory of initializing them."""
    with torch.device("meta"):
        model = RQVAE(config).to(dtype)
    model.quantizer.float()
    model.to_empty(device=device)
    model.quantizer.restarts.zero_()
    return model.eval().requires_grad_(True)


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, what is shared only once, under its first name."""
    once: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        once.setdefault(tensor.data_ptr(), (name, tensor))
    return dict(once.values())


def _shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


# ---- released ------------------------------------------------------------------------------------------------------
def import_tokenizer(checkpoint: str | Path, config: str | Path, *, ema: bool = False) -> RQVAE:
    """Read a released tokenizer (.pt with `state_dict`, config.yaml with `arch`), on the CPU, in eval mode.

    `ema` takes `state_dict_ema` instead. ValueError, one line that names the file, for objects that are not plain
    data, options that have no counterpart here, and tensors that do not fit the configuration.
    """
    checkpoint = Path(checkpoint)
    model = _empty_model(_released_config(Path(config)), "cpu", torch.float32)
    state = _released_state(checkpoint, "state_dict_ema" if ema else "state_dict")
    _refuse_misfit(checkpoint, _shapes_of(state), _shapes_of(model.state_dict()))
    if model.config.shared_codebook:
        _refuse_unequal_codebooks(checkpoint, state)
    model.load_state_dict(state)
    return model


def export_tokenizer(model: RQVAE, checkpoint: str | Path, config: str | Path) -> None:
    """Write a tokenizer as the released ones are: .pt with `state_dict`, and config.yaml.

    ValueError where the architecture has no counterpart there.
    """
    hparams, ddconfig = model.config.to_released()
    arch = {"type": "rq-vae", "code_hier": 1, "hparams": hparams, "ddconfig": ddconfig, "checkpointing": False}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(Path(checkpoint)) as file:
        torch.save({"state_dict": state}, file)
    storage.write_text(str(config), yaml.safe_dump({"arch": arch}, sort_keys=False))


def _released_state(path: Path, key: str) -> dict[str, Tensor]:
    file = safe_torch_load(path)
    if not isinstance(file, Mapping) or not isinstance(file.get(key), Mapping):
        found = _some(map(str, file)) if isinstance(file, Mapping) else type(file).__name__
        raise ValueError(f"{path}: no {key} in it (found: {found})")
    state = {unwrapped(str(name)): value for name, value in file[key].items()}
    if foreign := [name for name, value in state.items() if getattr(value, "dtype", None) not in NUMBERS]:
        raise ValueError(f"{path}: {key} holds something other than tensors: {_some(foreign)}")
    return state


def unwrapped(name: str) -> str:
    """Return a parameter's name without what DDP, torch.compile and FSDP's recomputation put in, wherever it stands."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _refuse_misfit(path: Path | str, given: Mapping[str, list[int]], wanted: Mapping[str, list[int]]) -> None:
    missing = wanted.keys() - given.keys()
    unknown = given.keys() - wanted.keys()
    other = [
        f"{name} is {given[name]}, the configuration says {shape}"
        for name, shape in wanted.items()
        if given.get(name, shape) != shape
    ]
    complaints = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unknown {_some(unknown)}"] * bool(unknown)
    if complaints + other:
        raise ValueError(f"{path}: does not fit its configuration: {'; '.join([*complaints, *other][:SHOWN])}")


def _refuse_unequal_codebooks(path: Path, state: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        if match := re.match(r"quantizer\.codebooks\.\d+\.(.*)", name):
            first = state[f"quantizer.codebooks.0.{match[1]}"]
            if tensor.data_ptr() != first.data_ptr() and not torch.equal(tensor, first):
                raise ValueError(f"{path}: {name} differs from depth 0's, but the configuration says shared_codebook")


def _released_config(path: Path) -> RQVAEConfig:
    arch = read_released_yaml(path).get("arch")
    if not isinstance(arch, dict) or not all(isinstance(arch.get(part), dict) for part in ("hparams", "ddconfig")):
        raise ValueError(f"{path}: no arch with hparams and ddconfig: is this a tokenizer's config.yaml?")
    if arch.get("type", "rq-vae") != "rq-vae":
        raise ValueError(f"{path}: arch.type is {arch['type']!r}: only 'rq-vae' is supported")
    try:
        return RQVAEConfig.from_released(arch["hparams"], arch["ddconfig"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: arch: {error}") from None


def read_released_yaml(path: Path) -> dict[str, Any]:
    """Read a config.yaml as plain mappings, lists and scalars, whatever its tags name; ValueError if it is none."""
    try:
        with open_file(str(path)) as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"larger than {MAX_CONFIG_BYTES} bytes")
        content = yaml.load(text, _PlainLoader)  # noqa: S506 (a SafeLoader)
        _refuse_unfolding(content)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no mapping in it")
    return content


def _refuse_unfolding(content: object) -> None:
    """Refuse a tree in which names for its own parts make of a few lines more than memory holds, or a circle."""
    left = [content]
    for _ in range(MAX_CONFIG_VALUES):
        if not left:
            return
        value = left.pop()
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
    raise ValueError(f"unfolds into more than {MAX_CONFIG_VALUES} values")


class _PlainLoader(yaml.SafeLoader):
    """A safe loader to which every foreign tag means plain data."""


def _plain(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    assert isinstance(node, yaml.MappingNode)
    content = loader.construct_mapping(node, deep=True)
    if tag.startswith(("object/new:", "object/apply:")):  # PyYAML's form for subclasses of dict and list
        return content.get("dictitems") or content.get("listitems") or content.get("state") or {}
    return content


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
_PlainLoader.add_multi_constructor("!", _plain)


def shown(name: str) -> str:
    """Return a name from somebody's file as it stands in a message: on one line, and no longer than that."""
    return printable(name[:LONGEST])


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(shown(name) for name in names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
