"""PPL-OCR: perplexity, under a language model, of the text that OCR reads from generated images.

The same for real images is the bound that generated ones can reach."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_specs.records import Interval, Perplexity
from train.evaluation.sources import folder_digest
from train.evaluation.vision_ops import from_folder, import_torchvision

MIN_WORDS = 5
RESAMPLES = 1000


class LanguageModel(Protocol):
    """`name` and `unit` (what one perplexity is per: "character" or "token") are part of every result."""

    name: str
    unit: str

    def score(self, text: str) -> tuple[float, int]:
        """Return the negative log-likelihood in nats and the units scored of a text."""
        ...


def ppl_ocr(texts: Sequence[str], model: LanguageModel) -> Perplexity:
    """Compute the perplexity of OCR texts, one per image, with a 95 % bootstrap interval over images.

    The interval is of 1,000 resamples.

    `perplexity` is exp(nats / units) over all scored texts together; `median` is that of the single texts. Texts of
    fewer than five words say too little to be scored and are counted in `num_too_short`; where that leaves none,
    the perplexity is None.
    """
    long_enough = [text for text in texts if len(text.split()) >= MIN_WORDS]
    scores = np.array([score for score in map(model.score, long_enough) if score[1] > 0], np.float64).reshape(-1, 2)
    perplexity, median, interval = _perplexities(scores)
    return Perplexity(
        perplexity=perplexity,
        median=median,
        interval_95=interval,
        unit=model.unit,
        model=model.name,
        num_images=len(texts),
        num_scored=len(scores),
        num_too_short=len(texts) - len(long_enough),
        num_units=int(scores[:, 1].sum()),
    )


class TransformersModel:
    """Any causal language model of `transformers`, from a local folder; `unit` is its own token.

    A tokenizer's first special token (BOS) opens each text where it has one; else the first token is not scored.
    Texts longer than the model's positions are cut into pieces, each scored by itself."""

    unit = "token"

    def __init__(self, path: str, device: str = "cpu"):
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{path}: no language model here (no config.json); give its folder, or leave --model out")
        import_torchvision()
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = from_folder(AutoTokenizer, path)
        model = from_folder(AutoModelForCausalLM, path, dtype="auto")
        self.model: Any = model.eval().to(device)
        self.window = getattr(self.model.config, "max_position_embeddings", None) or 2048
        self.name = f"{Path(path).resolve().name} {folder_digest(path)[:8]}"

    def score(self, text: str) -> tuple[float, int]:
        """Return the negative log-likelihood in nats and the tokens scored of a text."""
        import torch

        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        start = [] if bos is None else [bos]
        step = self.window - len(start)
        pieces = [start + tokens[i : i + step] for i in range(0, len(tokens), step)]
        nats = 0.0
        count = 0
        for piece in pieces:
            ids = torch.tensor([piece], device=self.model.device)
            with torch.inference_mode():
                logits = self.model(ids).logits[0, :-1].double()
            nats += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += len(piece) - 1
        return nats, count


def resampled_sums(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return sums [1,000, columns] over rows [n, columns], n of them drawn with replacement each time."""
    return rows[rng.integers(0, len(rows), (RESAMPLES, len(rows)))].sum(axis=1)


def interval_95(values: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 and 97.5 % quantiles of resampled figures."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _perplexities(scores: np.ndarray) -> tuple[float | None, float | None, Interval]:
    """Perplexity, median and interval of scores [images, (nats, units)], None where there are none."""
    if not len(scores):
        return None, None, None
    sums = resampled_sums(scores, np.random.default_rng(0))
    return (
        float(np.exp(scores[:, 0].sum() / scores[:, 1].sum())),
        float(np.median(np.exp(scores[:, 0] / scores[:, 1]))),
        interval_95(np.exp(sums[:, 0] / sums[:, 1])),
    )
