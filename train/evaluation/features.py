"""Feature extractors of the FID family: the 2015 Inception by path, any torch or transformers model, a small built-in.

Only Inception with the published weights may call its figures FID; every other extractor's name stands in theirs."""

import importlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from data_specs.digest import file_digest
from data_specs.text import one_line
from tokenize_jobs.foreign import safe_torch_load
from tokenize_jobs.tensors import digest_of_weights
from train.evaluation.vision_ops import from_folder, import_torchvision

PUBLISHED_INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SPATIAL_CHANNELS = 7
BUILTIN_SEED = 241001912
BUILTIN_WIDTHS = (3, 32, 64, 32)  # few features, so that few images have a covariance


class Features(NamedTuple):
    """Of n images: pool float32 [n, D]; spatial float32 [n, 2023] and logits float32 [n, 1008] of Inception alone."""

    pool: np.ndarray
    spatial: np.ndarray | None = None
    logits: np.ndarray | None = None


class Extractor(Protocol):
    """`name` stands in every figure, `digest` is of the weights, `is_fid` whether the figures may be called FID."""

    name: str
    digest: str
    is_fid: bool

    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 images [n, H, W, 3]."""
        ...


def load_extractor(spec: str, device: str = "cpu") -> Extractor:
    """Return the extractor that `spec` names:

    - "builtin": a small random network, so that something can be measured where there are no weights
    - "inception:FILE": the network of torch-fidelity with weights from FILE
    - "transformers:FOLDER": a vision model of `transformers`
    - "module:PACKAGE.MODULE:FUNCTION": what FUNCTION() returns, a torch.nn.Module, uint8 [n, 3, H, W] -> [n, D]

    Raises:
        ValueError: `spec` is anything else, or the file, folder or function is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "builtin" and not rest:
        return ModuleExtractor(RandomConvolutions(), f"builtin-random-conv-{BUILTIN_WIDTHS[-1]}", device)
    if kind == "inception" and rest:
        return InceptionExtractor(rest, device)
    if kind == "transformers" and rest:
        return TransformersExtractor(rest, device)
    if kind == "module" and ":" in rest:
        return ModuleExtractor(_call_factory(rest), rest, device)
    forms = "builtin, inception:FILE, transformers:FOLDER or module:PACKAGE.MODULE:FUNCTION"
    raise ValueError(f"no feature extractor {spec!r}: give {forms}")


class ModuleExtractor:
    """Any network: uint8 tensor [n, 3, H, W] -> features [n, D]."""

    is_fid = False

    def __init__(self, network: nn.Module, name: str, device: str = "cpu"):
        self.network = network.eval().requires_grad_(False).to(device)
        self.name = name
        self.device = device
        self.digest = digest_of_weights(network)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 images [n, H, W, 3]."""
        return Features(_rows(self.network(_to_tensor(images, self.device))))


class InceptionExtractor:
    """Inception of 2015-12-05 as the ADM evaluator uses it: TensorFlow 1's bilinear resize to 299, pool_3 (2048), the
    first seven channels of mixed_6/conv in NHWC order (17 x 17 x 7 = 2023), logits without bias."""

    def __init__(self, path: str, device: str = "cpu"):
        if not Path(path).is_file():
            raise ValueError(
                f"{path}: no Inception weights here. FID needs pt_inception-2015-12-05-6726825d.pth (the release files "
                "of pytorch-fid or torch-fidelity); without it use the extractor 'builtin', whose figure is not FID"
            )
        self.digest = file_digest(path)
        self.is_fid = self.digest == PUBLISHED_INCEPTION
        self.name = "inception-2015-12-05" if self.is_fid else f"inception-{self.digest[:8]}"
        self.device = device
        self.network = _inception(path).to(device)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self._spatial: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 images [n, H, W, 3]."""
        pool, logits = self.network(_to_tensor(images, self.device))
        assert self._spatial is not None
        return Features(_rows(pool), _rows(spatial_rows(self._spatial)), _rows(logits))

    def _keep_spatial(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._spatial = output


class TransformersExtractor:
    """A vision model of `transformers` from a local folder, with its own image processor.

    Features are get_image_features where the model has it (CLIP), else pooler_output, else the mean of the tokens."""

    is_fid = False

    def __init__(self, path: str, device: str = "cpu"):
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: no vision model here (no config.json); give a folder of a transformers model")
        import_torchvision()
        from transformers import AutoImageProcessor, AutoModel

        self.processor: Any = from_folder(AutoImageProcessor, path)
        self.network: Any = from_folder(AutoModel, path).eval().to(device)
        self.name = Path(path).resolve().name
        self.device = device
        self.digest = digest_of_weights(self.network)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """Features of uint8 images [n, H, W, 3]."""
        inputs = self.processor(list(images), return_tensors="pt").to(self.device)
        call = getattr(self.network, "get_image_features", self.network)
        output = call(**inputs)
        if not isinstance(output, Tensor):
            pooled = output.get("pooler_output")
            output = output["last_hidden_state"].mean(dim=1) if pooled is None else pooled
        return Features(_rows(output))


def spatial_rows(activations: Tensor) -> Tensor:
    """Flatten the first seven channels of activations [n, C, 17, 17] -> [n, 17 * 17 * 7].

    They lie as TensorFlow lays them out, NHWC.
    """
    return rearrange(activations[:, :SPATIAL_CHANNELS], "n c h w -> n (h w c)")


class RandomConvolutions(nn.Module):
    """Three random convolutions over the image at 64 x 64, means of their last channels: 32 features.

    The weights are drawn from a fixed seed by NumPy, so they are the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(BUILTIN_SEED)
        for i, (fan_in, fan_out) in enumerate(pairwise(BUILTIN_WIDTHS)):
            weight = rng.standard_normal((fan_out, fan_in, 5, 5)) * (2 / (fan_in * 25)) ** 0.5
            self.register_buffer(f"weight{i}", torch.from_numpy(weight.astype(np.float32)))

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float() / 127.5 - 1, size=(64, 64), mode="area")
        for i in range(len(BUILTIN_WIDTHS) - 1):
            x = F.leaky_relu(F.conv2d(x, self.get_buffer(f"weight{i}"), stride=2, padding=2), 0.2)
        return x.mean(dim=(2, 3))


def _inception(path: str) -> Any:
    import_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:  # torch-fidelity unpickles freely: only a file that loads as plain weights may reach it
        safe_torch_load(Path(path))  # and asks for no more memory than the file has
        torch.load(path, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], path)
    except Exception as error:
        raise ValueError(f"{path}: not the weights of the 2015-12-05 Inception: {one_line(error, 200)}") from error


def _call_factory(path: str) -> nn.Module:
    module_name, _, function = path.partition(":")
    try:
        factory: Callable[[], nn.Module] = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"module:{path}: {error}; give module:PACKAGE.MODULE:FUNCTION on PYTHONPATH") from error
    return factory()


def _to_tensor(images: np.ndarray, device: str) -> Tensor:
    return rearrange(torch.from_numpy(images.copy()), "n h w c -> n c h w").to(device)


def _rows(features: Tensor) -> np.ndarray:
    return features.flatten(1).float().cpu().numpy()
