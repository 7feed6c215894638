"""Transformers on disk: ours (transformer.safetensors, ema.safetensors, transformer.json) and the released .pt files.

dnd import transformer PATH.pt --preset imagenet_16x16x2 --size XXL
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_specs import storage
from data_specs.local_files import link_or_copy
from data_specs.records import parse_config
from data_specs.shape import SIZES
from tokenize_jobs.foreign import safe_torch_load
from tokenize_jobs.tensors import DTYPES, whole_file, write_safetensors
from tokenize_jobs.weights import shown, unwrapped
from train.model import DnDTransformer, TransformerConfig

WEIGHTS = "transformer.safetensors"
EMA_WEIGHTS = "ema.safetensors"
CONFIG = "transformer.json"
RELEASED_KEYS = ("model", "module", "state_dict", "ema")  # where a released file may hold its weights, else bare

Shapes = Mapping[str, tuple[int, ...]]


# ---- ours ----------------------------------------------------------------------------------------------------------
def load_transformer(
    folder: str | Path, ema: bool = True, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DnDTransformer:
    """Load the transformer of a folder or URI (ROOT/transformer), in eval mode.

    No other file is fetched than these weights, and one tensor is read at a time, so that only the model takes memory.

    Args:
        ema: whether to take the moving average of the weights.

    Raises:
        ValueError: names the file.
    """
    config = read_config(str(folder))
    with open_weights(str(folder), ema, device) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        uri = storage.join(str(folder), EMA_WEIGHTS if ema else WEIGHTS)
        _refuse_misfit(uri, shapes, config, f"{CONFIG} beside it")
        state = {name: file.get_tensor(name).to(dtype) for name in shapes}
    return DnDTransformer.of_state(config, state)


@contextmanager
def open_weights(folder: str, ema: bool = False, device: torch.device | str = "cpu") -> Iterator[safe_open]:
    """Open the weights of a transformer's folder or URI, to be read one tensor at a time.

    Raises:
        ValueError: names the file.
    """
    uri = storage.join(folder, EMA_WEIGHTS if ema else WEIGHTS)
    try:
        with safe_open(storage.local_copy(uri), "pt", device=str(device)) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{uri}: no readable transformer weights ({error}): train or import it again") from None


def read_config(folder: str) -> TransformerConfig:
    """Read the configuration of a transformer's folder or URI.

    Raises:
        ValueError: that fails; the message names the file.
    """
    uri = storage.join(folder, CONFIG)
    try:
        return parse_config(TransformerConfig, storage.read_bytes(uri))
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri}: no readable transformer configuration ({error}): train or import it again") from None


# ---- released ------------------------------------------------------------------------------------------------------
def import_transformer(checkpoint: str | Path, folder: str | Path, config: TransformerConfig) -> None:
    """Turn a released .pt file into a local transformer folder.

    The file is mapped, not read, and its tensors are streamed out one by one. Without a moving average in the file,
    ema.safetensors is another name of transformer.safetensors.

    Args:
        checkpoint: the file.
        folder: what is written.
        config: that of the preset and size which the file should be.

    Raises:
        ValueError: names the file and the parameter or argument that is not plain data or does not fit `config`.
    """
    checkpoint = Path(checkpoint)
    folder = Path(folder)
    content = safe_torch_load(checkpoint)
    weights, average = _released_weights(checkpoint, content)
    _refuse_other_arguments(checkpoint, content, config)
    for state in (weights, average) if average else (weights,):
        _refuse_misfit(checkpoint, {name: tuple(t.shape) for name, t in state.items()}, config, "--preset and --size")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)  # written last: a folder with it is whole
    write_safetensors(folder / WEIGHTS, weights)
    if average:
        write_safetensors(folder / EMA_WEIGHTS, average)
    else:
        (folder / EMA_WEIGHTS).unlink(missing_ok=True)
        link_or_copy(folder / WEIGHTS, folder / EMA_WEIGHTS)
    with whole_file(folder / CONFIG) as file:
        file.write(config.to_json().encode())


def size_of_released(checkpoint: str | Path) -> str | None:
    """Return the size of the table (B … XXXL) that a released file's weights have; None for any other."""
    weights, _ = _released_weights(Path(checkpoint), safe_torch_load(Path(checkpoint)))
    width = tuple(weights["tok_embeddings.weight"].shape)[-1:] if "tok_embeddings.weight" in weights else ()
    found = (_num_layers(weights), *width)
    return next((name for name, (layers, _, dim) in SIZES.items() if found == (layers, dim)), None)


def export_transformer(folder: str | Path, checkpoint: str | Path) -> None:
    """Write a transformer as the released files are: weights under `model`, their moving average under `ema`.

    Args:
        folder: a local one or a URI.
        checkpoint: the file to write.

    Raises:
        ValueError: names what is wrong with the folder.
    """
    content = {"model": dict(load_transformer(folder, ema=False).state_dict())}
    if storage.exists(storage.join(str(folder), EMA_WEIGHTS)):
        content["ema"] = dict(load_transformer(folder, ema=True).state_dict())
    with whole_file(Path(checkpoint)) as file:
        torch.save(content, file)


def _released_weights(path: Path, content: object) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Return weights and, where the file has both, their moving average."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds {type(content).__name__}, not a checkpoint of a transformer")
    found = [key for key in RELEASED_KEYS if isinstance(content.get(key), Mapping)]
    if not found:
        return _named_tensors(path, "", content), None
    average = _named_tensors(path, "ema", content["ema"]) if "ema" in found[1:] else None
    return _named_tensors(path, found[0], content[found[0]]), average


def _named_tensors(path: Path, key: str, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    state = {unwrapped(str(name)): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not _is_buffer(name)}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {key or 'checkpoint'}[{shown(name)!r}] is no tensor of weights: not a transformer's file"
            )
    return dict(state)


def _is_buffer(name: str) -> bool:
    """Return whether a name is of what the authors' model keeps after sampling: rotary factors, masks, caches."""
    return name in ("freqs_cis", "causal_mask") or ".kv_cache." in name


def _refuse_other_arguments(path: Path, content: Mapping[str, Any], config: TransformerConfig) -> None:
    """Check what weights cannot tell (attention heads, head layers, grid) against the training arguments, if any."""
    args = vars(content["args"]) if hasattr(content.get("args"), "__dict__") else {}
    expected: dict[str, Any] = {
        "gpt_model": _size_name(config),
        "pred_head_positions": ",".join(map(str, config.head_layers)),
        "num_pred_heads": str(config.depth),
    }
    if isinstance(downsampling := args.get("downsample_size"), int):
        expected["image_size"] = str(config.grid[0] * downsampling)
    for key, wanted in expected.items():
        if key in args and wanted and _plain_list(args[key]) != wanted:
            raise ValueError(
                f"{path}: was trained with {key} {_plain_list(args[key])}, not {wanted}: try another --preset or --size"
            )


def _size_name(config: TransformerConfig) -> str | None:
    names = {shape: f"GPT-{name}" for name, shape in SIZES.items()}
    return names.get((config.num_layers, config.num_heads, config.dim))


def _plain_list(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).replace(" ", "")


def _refuse_misfit(path: Path | str, given: Shapes, config: TransformerConfig, source: str) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in DnDTransformer(config).state_dict().items()}
    for name in [*wanted, *given]:
        if given.get(name) != wanted.get(name):
            has = f"is {list(given[name])}" if name in given else "is missing"
            should = f"should be {list(wanted[name])}" if name in wanted else "should not be there"
            raise ValueError(
                f"{path}: {shown(name)} {has} but by {source} {should}; the file looks like {_looks_like(given)}"
            )


def _looks_like(shapes: Shapes) -> str:
    vocabulary, width = (*shapes.get("tok_embeddings.weight", ()), 0, 0)[:2]
    depth = sum(name.startswith("output.") for name in shapes)
    rows = next(iter(shapes.get("cls_embedding.embedding_table.weight", ())), 0)
    return f"{_num_layers(shapes)} layers of width {width}, {vocabulary} codes of depth {depth}, {rows} rows of classes"


def _num_layers(names: Iterable[str]) -> int:
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})
