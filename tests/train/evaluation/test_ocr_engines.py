"""OCR engines: tesseract where it is installed, and Qwen2-VL as a tiny randomly initialised model."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from train.evaluation import ocr
from train.evaluation.vision_ops import import_torchvision

needs_tesseract = pytest.mark.skipif(not ocr.ocr_available(), reason="tesseract is not installed")


def small_picture(text: str, ink: str = "black", paper: str = "white") -> np.ndarray:
    image = Image.new("RGB", (64, 64), paper)
    ImageDraw.Draw(image).text((2, 2), text, font=ImageFont.load_default(14), fill=ink)
    return np.asarray(image)


@needs_tesseract
def test_tesseract_reads_14px_type_in_64px_images_in_order():
    engine = ocr.load_engine("tesseract")
    images = [small_picture("these are\nthe first"), small_picture("second\npicture", "white", "#203060")]
    assert [text.split() for text in engine.read(images)] == [["these", "are", "the", "first"], ["second", "picture"]]
    assert engine.name.startswith("tesseract 5") and "--psm 6" in engine.name


@needs_tesseract
def test_blank_image_reads_as_nothing():
    assert ocr.load_engine().read([np.full((64, 64, 3), 255, np.uint8)]) == [""]


@pytest.mark.parametrize(("side", "factor"), [(64, 4), (128, 4), (256, 2), (384, 2), (512, 1), (900, 1)])
def test_small_images_are_enlarged_and_framed_in_their_own_border_colour(side, factor):
    large = ocr.enlarge(np.full((side, side + 3, 3), (10, 20, 30), np.uint8))
    assert large.shape == (side * factor + 32, (side + 3) * factor + 32, 3)
    assert (large == (10, 20, 30)).all()


def test_absent_tesseract_is_said_with_a_remedy(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not ocr.ocr_available()
    with pytest.raises(ValueError, match="apt-get install tesseract-ocr"):
        ocr.load_engine("tesseract")


def test_missing_model_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        ocr.load_engine(str(tmp_path))


def test_qwen2_vl_answers_images_of_different_shapes_and_alone_as_in_a_batch(tmp_path, monkeypatch):
    tiny_qwen2_vl(tmp_path)
    monkeypatch.setattr(ocr, "QWEN_MAX_NEW_TOKENS", 6)
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
