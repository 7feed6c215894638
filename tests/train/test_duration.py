"""What `dnd memory` says of hours: more GPUs than a batch has work for save none."""

from __future__ import annotations

import pytest

from data_specs.spec import load_spec
from train.duration import HOST_SECONDS, PEAK, UTILISATION, advised, duration, durations, table
from train.flops import image_flops
from train.model import config_of


def test_one_gpu_takes_what_its_arithmetic_takes() -> None:
    spec = load_spec("imagenet_16x16x2")
    config = config_of(spec)
    seconds = spec.train.batch_size * image_flops(config) / (PEAK * UTILISATION)
    found = duration(spec, 1)
    assert found.step_seconds == pytest.approx(seconds)
    assert found.gpu_days == pytest.approx(spec.train.steps * seconds / 86_400)


@pytest.mark.parametrize("preset", ["imagenet_16x16x2", "arxiv_image_16x16x8", "text_image_24x24x1"])
def test_sixty_four_gpus_cost_much_more_and_save_little(preset: str) -> None:
    spec = load_spec(preset)
    config = config_of(spec)
    found = {one.gpus: one for one in durations(spec, 64)}
    of_host = config.num_layers * HOST_SECONDS
    assert found[64].step_seconds >= of_host > 4 * image_flops(config) / (PEAK * UTILISATION)
    assert found[64].hours > 0.5 * found[16].hours and found[64].gpu_days > 2 * found[16].gpu_days
    assert found[32].hours == pytest.approx(found[64].hours)
    assert advised(list(found.values())) in (8, 16)


def test_only_numbers_that_the_batch_divides_among_are_shown() -> None:
    spec = load_spec("imagenet_16x16x2", ["train.batch_size=96"])
    lines = table(spec, 24)
    assert lines[1].split() == ["GPUs", "8", "16", "24", "32"] and lines[-1].startswith("advised: ")


def test_a_small_model_takes_little_and_not_nothing() -> None:
    spec = load_spec("demo")
    rows = {line[:18].strip(): line[18:].split() for line in table(spec, 1)[1:-1]}
    assert all(float(cell.replace(",", "")) > 0 for cells in rows.values() for cell in cells)
