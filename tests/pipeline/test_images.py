"""Images of every mode and shape become crops, or are rejected with a reason; nothing crashes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_specs.records import Reason
from data_specs.sections import Limits
from pipeline.renderers import UnreadableError
from pipeline.renderers.images import render_image
from tokenize_jobs.views import random_view

PIXELS = np.random.default_rng(0).integers(0, 256, (61, 97, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def crop(data: bytes, size: int = 64, max_pixels: int = 10**6, formats: list[str] | None = None) -> np.ndarray:
    limits = Limits.model_validate({"pixels": max_pixels} | ({"image_formats": formats} if formats else {}))
    (picture,) = render_image(data, size, limits)
    assert picture.image.shape == (size, size, 3) and picture.image.dtype == np.uint8
    return picture.image


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    + [(mode, "JPEG") for mode in ("L", "CMYK", "YCbCr")]
    + [(mode, "TIFF") for mode in ("LAB", "CMYK")]
    + [("RGB", kind) for kind in ("WEBP", "BMP", "GIF", "PPM")],
)
def test_every_mode_becomes_rgb(mode: str, kind: str) -> None:
    data = encoded(RGB.convert(mode), kind)
    assert abs(float(crop(data, formats=[kind]).mean()) - PIXELS.mean()) < 3


@pytest.mark.parametrize("shape", [(61, 97), (97, 61), (200, 61)])
def test_a_whole_image_is_cut_anywhere_along_its_long_side(shape: tuple[int, int]) -> None:
    """As the authors trained their tokenizer: torchvision's Resize of the shorter side, then RandomCrop and a flip."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8))
    (picture,) = render_image(encoded(image), 32, Limits(), whole=True)
    short, long = min(shape), max(shape)
    size = tuple(32 if side == short else int(32 * long / short) for side in image.size)
    np.testing.assert_array_equal(picture.image, np.asarray(image.resize(size, Image.Resampling.BILINEAR)))
    draws = np.random.default_rng(2).random((3000, 3)).tolist()
    views = {random_view(picture.image, 32, tuple(at)).tobytes() for at in draws}
    assert len(views) == 2 * (max(size) - 32 + 1)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_that_eight_bits_cannot_hold_are_refused(mode: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        crop(encoded(RGB.convert("L").convert(mode), "TIFF"), formats=["TIFF"])
    assert (caught.value.reason, caught.value.detail) == (Reason.MODE_NOT_ALLOWED, f"TIFF of mode {mode}")


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "ICO", "EPS", "PDF", "JPEG2000", "AVIF", "DDS", "PCX"])
def test_formats_that_the_spec_does_not_name_are_not_opened(kind: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        crop(encoded(RGB, kind))
    reason = Reason.NOT_AN_IMAGE if kind == "PDF" else Reason.FORMAT_NOT_ALLOWED
    assert (caught.value.reason, caught.value.detail) == (reason, "begins with b'%PDF-1.4'" if kind == "PDF" else kind)


def test_no_interpreter_is_looked_for(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[tuple[object, ...]]()
    monkeypatch.setattr("shutil.which", lambda *names, **_: looked.append(names))
    monkeypatch.setattr("subprocess.Popen", lambda *names, **_: looked.append(names))
    with pytest.raises(UnreadableError) as caught:
        crop((shared / "cases/misc/eps_as.jpg").read_bytes())
    assert (caught.value.reason, caught.value.detail, looked) == (Reason.FORMAT_NOT_ALLOWED, "EPS", [])


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 64), (63, 200), (127, 128), (128, 129), (301, 77)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    assert (crop(encoded(Image.new("RGB", size, "red"))) == [255, 0, 0]).all()


def test_sixteen_bits_keep_their_greys() -> None:
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    assert np.array_equal(crop(encoded(Image.fromarray(grey)))[..., 0], grey >> 8)


def test_exif_orientation_is_left_aside_as_by_the_authors() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    assert np.array_equal(crop(encoded(RGB, "JPEG", exif=exif)), crop(encoded(RGB, "JPEG")))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (encoded(RGB)[:2000], "not an image"),
        (encoded(Image.new("L", (1001, 1000))), "1001x1000 pixels, over the limit"),
        (encoded(Image.new("L", (20_000, 1))), "20000x1 pixels: enlarged to 64, over the limit"),
    ],
)
def test_what_cannot_be_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        crop(data)
