"""Memory as it is counted on tensors without bytes, against the same steps on real ones."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import fake_cuda, on_cuda
from image_sets import tiny_spec

from data_specs.spec import load_spec
from tokenize_jobs import memory
from tokenize_jobs.device import CONTEXT, USABLE, largest_fitting, naming_what_to_lower
from tokenize_jobs.memory import LiveBytes, Needs, fitting_compute_batch, fitting_micro_batch, training_needs
from tokenize_jobs.networks import config_of
from tokenize_jobs.rqvae import RQVAE

GAN = ("tokenizer.gan_start=0", "tokenizer.ema=0.9")


def test_a_step_without_bytes_counts_what_a_real_one_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny_spec(*GAN)
    counted = memory._training_peak(spec, torch.float32, 3)

    class Real:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(memory, "FakeTensorMode", Real)
    assert memory._training_peak(spec, torch.float32, 3) == pytest.approx(counted, rel=0.01)


def test_the_micro_batch_is_what_fits_and_what_never_does_is_refused() -> None:
    spec = tiny_spec()
    needs = training_needs(spec, 1, torch.float32)
    three, none = ((bytes_ + CONTEXT) / USABLE for bytes_ in (needs.of(3) + needs.image / 2, needs.fixed))
    assert fitting_micro_batch(spec, 1, torch.float32, three) == 3
    with pytest.raises(ValueError, match=r"one image of 32 px takes .* GB in training, a device has 1\.."):
        fitting_micro_batch(spec, 1, torch.float32, none)


def test_what_fits_by_far_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "training_needs", None)
    assert fitting_micro_batch(tiny_spec(), 1, torch.float32, 16e9) == tiny_spec().tokenizer.batch_size


def test_ranks_send_their_gradients_as_one_tensor() -> None:
    spec = tiny_spec()
    alone, among = (training_needs(spec, world, torch.float32) for world in (1, 2))
    parameters = sum(p.numel() for p in RQVAE(config_of(spec)).parameters())
    assert among.fixed - alone.fixed == pytest.approx(4 * parameters) and among.image == pytest.approx(alone.image)


def test_a_batch_to_encode_is_a_power_of_two_that_fits() -> None:
    config = config_of(load_spec("imagenet_16x16x2"))
    assert fitting_compute_batch(config, torch.bfloat16, 24e9) in (32, 64, 128)
    assert fitting_compute_batch(config_of(tiny_spec()), torch.float32, 1e9) == 1  # less than CUDA itself takes
    assert largest_fitting(range(100, 0, -1), Needs(1e9, 1e9).of, 12e9) == 9


def test_the_end_of_memory_names_the_key() -> None:
    with (
        pytest.raises(ValueError, match=r"out of memory with tokenizer\.micro_batch_size=7: set it lower"),
        naming_what_to_lower("tokenizer.micro_batch_size", 7),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="size"), naming_what_to_lower("tokenizer.micro_batch_size", 7):
        torch.zeros(2) + torch.zeros(3)


def test_on_a_gpu_no_map_is_kept_in_float32_under_autocast() -> None:
    """Bytes that backward keeps of an image: CUDA's autocast would write norms and SiLU in float32."""
    spec = load_spec("imagenet_16x16x2")
    with torch.device("meta"):
        model = RQVAE(config_of(spec)).train()
    with fake_cuda():
        live, images = LiveBytes(), torch.empty(1, 3, 256, 256, device="cuda")
        on_cuda(model)
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast asks the driver
        try:
            with live:
                loss = model.images(model.latents(images)).float().sum()
        finally:
            torch.set_autocast_enabled("cuda", False)
        kept = live.now
        del loss
    assert kept < 1.1e9  # 1.42 GB with them, 1.68 in float32
