"""Results as the tables of the report: a head, and rows of one label and a value a column."""

from __future__ import annotations

from typing import Any

from train.evaluation.published import PUBLISHED

NAMES = {
    "psnr": "PSNR, dB",
    "psnr_of_mean_error": "PSNR of the mean error, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "bits_per_pixel": "bits a pixel",
    "information_compression_ratio": "bits of codes for a bit of image",
    "codebook_share_used": "share of the codebook in use",
    "codebook_perplexity": "perplexity of the codes",
    "num_images": "images",
    "num_identical": "of them reproduced exactly",
    "gfid": "gFID",
    "rfid": "rFID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "cer": "character error rate",
    "wer": "word error rate",
    "word_accuracy": "word accuracy",
    "num_without_text": "images without text, not scored",
    "num_words": "words",
    "num_scored": "images scored",
    "num_too_short": "images of fewer than five words, not scored",
}
KINDS = ("real", "generated")  # columns of PPL-OCR

Table = dict[str, Any]  # head: [str], rows: [(label, [value, …])]


def table_of(result: dict[str, Any]) -> Table:
    """The table of one evaluation: depths or kinds of image side by side where it has them, else its figures."""
    if "depths" in result:
        return _by_depth(result["depths"])
    if all(kind in result for kind in KINDS):
        return _by_kind(result)
    figures = result.get("figures") or {k: v for k, v in result.items() if k in NAMES}
    return {"head": ["figure", "value"], "rows": [(_name(k), [_text(v)]) for k, v in figures.items()]}


def against_published(evaluations: list[dict[str, Any]], depth: int) -> list[dict[str, Any]]:
    """Every published figure, with ours of the same name beside those of as many codes a position."""
    ours: dict[str, list[tuple[str, float]]] = {}
    for one in evaluations:
        for figure, value in {**one["result"], **one["result"].get("figures", {})}.items():
            ours.setdefault(figure, []).append((one["name"], value))
    return [
        {
            **row._asdict(),
            "figure": _name(row.figure),
            "ours": [f"{_text(v)} ({name})" for name, v in ours.get(row.figure, [])] if row.depth == depth else [],
        }
        for row in PUBLISHED
    ]


def _by_depth(rows: list[dict[str, Any]]) -> Table:
    keys = [key for key in rows[0] if key != "depth"]
    return {
        "head": ["codes a position", *(str(row["depth"]) for row in rows)],
        "rows": [(_name(key), [_text(row[key]) for row in rows]) for key in keys],
    }


def _by_kind(result: dict[str, Any]) -> Table:
    of = [result[kind] for kind in KINDS]
    return {
        "head": ["", *KINDS],
        "rows": [
            (f"perplexity per {result['unit']}", [_text(one["perplexity"]) for one in of]),
            ("95 % interval", [" – ".join(map(_text, one["interval_95"] or ["none"])) for one in of]),
            ("median of the images", [_text(one["median"]) for one in of]),
            ("real words", [_text(one["words"]["share"]) for one in of]),
            *((_name(key), [_text(one[key]) for one in of]) for key in ("num_images", "num_scored", "num_too_short")),
        ],
    }


def _name(key: str) -> str:
    return NAMES.get(key, key.replace("_", " "))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
