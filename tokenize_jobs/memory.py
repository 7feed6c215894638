"""Memory of the tokenizer's training and of encoding, counted on tensors that have shapes and no bytes.

The training step itself is run on them, so that nothing is counted by hand: convolutions, autocast, LPIPS, the
discriminator, Adam. What a library needs for itself (cuDNN's workspaces) is not seen; `device.room_in` leaves room.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from data_specs.spec import Spec
from tokenize_jobs.device import autocast, largest_fitting, powers_of_two, room_in
from tokenize_jobs.losses import LPIPS
from tokenize_jobs.networks import Networks, config_of
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig

COUNTED = (64, 128)  # images that are counted: with so many the parts that do not grow with them no longer decide
MANY_MAPS = 128  # feature maps at full size that an image never needs: 50 with LPIPS and discriminator at f=16
MAX_BATCH = 512


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that live inside of the block, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.held:
            self.held[key] = storage.nbytes()
            self.now += self.held[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self.held.pop(key)


class Needs(NamedTuple):
    """Bytes that a device must hold: whatever the batch, and for each image of it."""

    fixed: float
    image: float

    def of(self, images: int) -> float:
        """Return the bytes for so many images at a time."""
        return self.fixed + images * self.image


def _line(peaks: list[int]) -> Needs:
    few, many = COUNTED
    image = (peaks[1] - peaks[0]) / (many - few)
    return Needs(peaks[0] - few * image, image)


# ---- training ------------------------------------------------------------------------------------------------------
def training_needs(spec: Spec, world: int, dtype: torch.dtype) -> Needs:
    """Count the memory of a rank that trains the tokenizer, one of `world`."""
    needs = _line([_training_peak(spec, dtype, images) for images in COUNTED])
    with torch.device("meta"):
        gradients = 4 * sum(p.numel() for net in _networks(spec).trained for p in net.parameters())
    return needs._replace(fixed=needs.fixed + (gradients if world > 1 else 0))  # they travel as one tensor


def _networks(spec: Spec) -> Networks:
    section = spec.tokenizer
    networks = Networks.of(section, RQVAE(config_of(spec)), LPIPS() if section.lpips_weights else None)
    networks.model.quantizer.eval()  # how rows restart depends on values, and takes little
    return networks


def _training_peak(spec: Spec, dtype: torch.dtype, images: int) -> int:
    """Most bytes at a time in the second of two steps, when the optimizers have their moments."""
    size = spec.shape.image_size
    with FakeTensorMode(), LiveBytes() as live:
        networks = _networks(spec)
        optimizers = networks.optimizers()
        average = [p.clone() for p in networks.model.parameters()] if spec.tokenizer.ema else []
        batch = torch.empty(images, 3, size, size)
        for _ in range(2):
            networks.add_gradients(batch, dtype, networks.discriminator is not None)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    del average
    return live.peak


def fitting_micro_batch(spec: Spec, world: int, dtype: torch.dtype, memory: float) -> int:
    """Return how many images a rank takes at a time: all its share, or what fits into `memory` bytes."""
    section = spec.tokenizer
    shape = spec.shape
    share = -(-section.batch_size // world)
    of_map = 4 * section.channels * (shape.image_size // section.patch) ** 2
    if share * MANY_MAPS * of_map < room_in(memory) / 2:
        return share
    needs = training_needs(spec, world, dtype)
    if fitting := largest_fitting(range(share, 0, -1), needs.of, memory):
        return fitting
    raise ValueError(
        f"tokenizer: one image of {shape.image_size} px takes {needs.of(1) / 1e9:.1f} GB in training, a device has "
        f"{memory / 1e9:.1f}: lower tokenizer.channels or shape.image_size, or set tokenizer.micro_batch_size=1 to try"
    )


# ---- encoding ------------------------------------------------------------------------------------------------------
def encoding_needs(config: RQVAEConfig, dtype: torch.dtype) -> Needs:
    """Count the memory of a worker that encodes, with autocast to `dtype`, and decodes."""
    return _line([_encoding_peak(config, dtype, images) for images in COUNTED])


@torch.inference_mode()
def _encoding_peak(config: RQVAEConfig, dtype: torch.dtype, images: int) -> int:
    with FakeTensorMode(), LiveBytes() as live:
        model = RQVAE(config).eval()
        batch = torch.empty(images, 3, *config.image_size)
        with autocast(batch.device, dtype):
            codes = model.encode(batch)
        model.decode(codes)
    return live.peak


def fitting_compute_batch(config: RQVAEConfig, dtype: torch.dtype, memory: float) -> int:
    """Return the largest power of two of images, up to MAX_BATCH, that fits into `memory` bytes of a GPU, or 1."""
    return largest_fitting(powers_of_two(MAX_BATCH), encoding_needs(config, dtype).of, memory) or 1
