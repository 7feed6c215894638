"""Qwen2-VL from a local folder, asked as the authors of the DnD-Transformer asked it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_specs.text import one_line
from train.evaluation.ocr.engine import OcrEngine, Reading
from train.evaluation.sources import folder_digest
from train.evaluation.vision_ops import import_torchvision

PROMPT = "What is the text in the image? Your answer should exactly be the text in the image."
MAX_NEW_TOKENS = 1024
BATCH = 8


class Qwen2VL(OcrEngine):
    """Their prompt, greedy, 1,024 new tokens; no boxes. The model is loaded when the first picture is read."""

    name = "qwen2-vl"
    on_device = True

    @property
    def spec(self) -> str:
        """The engine and the folder of its model."""
        return f"{self.name}:{self.path}"

    @classmethod
    def missing(cls, path: str = "") -> str | None:
        """Return why the engine cannot be used here, or None."""
        if not path or not (Path(path) / "config.json").is_file():
            return f"{path or 'qwen2-vl'}: no Qwen2-VL model here (no config.json); give its folder, or another engine"
        return None

    def __init__(self, path: str = "", device: str = "cpu", num_workers: int | None = None) -> None:
        self.path = path
        self.device = device
        self.version = f"{Path(path).resolve().name} {folder_digest(path)[:8]} greedy {MAX_NEW_TOKENS}"

    @cached_property
    def processor(self) -> Any:
        """Images and prompts to the model's inputs."""
        import_torchvision()
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        processor.tokenizer.padding_side = "left"  # generation continues from the right end of every row
        return processor

    @cached_property
    def model(self) -> Any:
        """The network, loaded when the first image is read: a run that finds all of them read never loads it."""
        from transformers import Qwen2VLForConditionalGeneration

        model = Qwen2VLForConditionalGeneration.from_pretrained(self.path, dtype="auto", local_files_only=True)
        return model.eval().to(self.device)

    def read(self, images: Sequence[np.ndarray]) -> list[Reading]:
        """Read images uint8 [H, W, 3], eight at a time; where eight fail, one by one."""
        readings: list[Reading] = []
        for first in range(0, len(images), BATCH):
            batch = images[first : first + BATCH]
            try:
                readings += self._read_batch(batch)
            except (RuntimeError, ValueError, IndexError):
                readings += [self._read_alone(image) for image in batch]
        return readings

    def _read_alone(self, image: np.ndarray) -> Reading:
        try:
            return self._read_batch([image])[0]
        except (RuntimeError, ValueError, IndexError) as error:
            return Reading("", failure=f"{type(error).__name__}: {one_line(error, 200)}")

    def _read_batch(self, images: Sequence[np.ndarray]) -> list[Reading]:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        chat = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        pictures = [Image.fromarray(image) for image in images]
        inputs = self.processor(text=[prompt] * len(pictures), images=pictures, padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        tokens = self.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return [Reading(text) for text in texts]
