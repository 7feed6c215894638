"""The figures of the report, for the validation split of a root: written to ROOT/evaluation/summary.json.

PSNR and codebook usage of the tokenizer, bits a code of the transformer beside what counts alone reach, and the share
of real words that OCR reads.
"""

from __future__ import annotations

import logging
from itertools import islice

from data_specs import open_shards, storage
from data_specs.metrics import read_rows
from data_specs.reader import ShardSet
from data_specs.records import Quality, RealWords, Reconstruction, Summary, SummaryInputs, SummaryWords
from data_specs.root import NAME, spec_of
from data_specs.spec import Spec
from data_specs.telemetry import Row
from train.evaluation.codes import codebook_usage, count_codes, histogram_baseline
from train.evaluation.context import context_baseline
from train.evaluation.images import reconstruction_quality
from train.evaluation.ocr import OcrEngine, find_engine, load_engine
from train.evaluation.reading import engine_info, spread
from train.evaluation.reading_cache import cache_of, read_pictures, unread_reasons
from train.evaluation.reconstruction import pairs, reconstruction_inputs
from train.evaluation.results import read_result, read_summary, summary_uri, write_result
from train.evaluation.sources import ShardImages
from train.evaluation.words import drawn_texts, real_word_share, vocabulary

log = logging.getLogger(__name__)
AIM = 0.6  # share of generated words that should be real (demo)


def summarise(spec: Spec, root: str) -> Summary:
    """Score what the root holds and write ROOT/evaluation/summary.json.

    It is made anew where a set, a setting, the last validation, the OCR engine or its version is another.

    Raises:
        ValueError: the root's codes are of another shape than the spec's, or a set is empty.
    """
    _refuse_other_codes(spec, root)
    engine = load_engine() if find_engine() else None
    validation = last_validation(root)
    inputs = _inputs(spec, root, engine, validation)
    made = _made_before(root)
    if made and made.inputs == inputs:
        return made
    codes = _code_sets(root)
    counts = {
        split: count_codes((item["codes"] for item in of), spec.codes.codebook_size) for split, of in codes.items()
    }
    histogram = histogram_baseline(counts["train"], counts["val"])
    context = context_baseline(
        (item["codes"] for item in codes["train"]),
        (item["codes"] for item in islice(codes["val"], _validated_images(spec))),
        spec.codes.codebook_size,
    )
    summary = Summary(
        inputs=inputs,
        bits_per_code=_bits(spec, validation),
        context_bits_per_code=context.bits_per_code,
        histogram_bits_per_code=histogram.bits_per_code,
        reconstruction=_reconstruction(spec, root),
        codebook=tuple(codebook_usage(counts["val"])),
        histogram=histogram,
        context=context,
        transformer=validation,
        words=_words(spec, root, engine),
    )
    write_result(summary_uri(root), summary)
    return summary


def _refuse_other_codes(spec: Spec, root: str) -> None:
    codes = storage.join(root, "codes")
    if storage.exists(storage.join(codes, NAME)):
        spec.codes.refuse_other(spec_of(root, "codes").codes, codes, "the spec's", "leave SPEC out")


def _made_before(root: str) -> Summary | None:
    """Return the summary that is there; one that cannot be read counts as none, to be made anew."""
    try:
        return read_summary(root)
    except ValueError as error:
        log.warning("%s: done now", error)
        return None


def _code_sets(root: str) -> dict[str, ShardSet]:
    """Return the codes of both splits.

    Raises:
        ValueError: an empty one.
    """
    codes = {split: open_shards(storage.join(root, "codes", split)) for split in ("train", "val")}
    for of in codes.values():
        if not len(of):
            raise ValueError(f"{of.uri}: the shard set is empty: there is nothing to score")
    return codes


def last_validation(root: str) -> Row | None:
    """Return the last row of the training's metrics that holds a validation, or None."""
    rows = read_rows(storage.join(root, "transformer", "metrics.jsonl"))
    return next((row for row in reversed(rows) if "val_bits_per_code" in row), None)


def _validated_images(spec: Spec) -> int | None:
    """How many images of the validation split training measures its bits on; None, all, where nothing was trained."""
    return spec.train.validation_images if spec.train else None


def _bits(spec: Spec, validation: Row | None) -> float | None:
    """Bits a code of the weights that are sampled from."""
    if validation is None:
        return None
    plain = float(validation["val_bits_per_code"])
    return float(validation.get("val_ema_bits_per_code", plain)) if spec.sample.ema else plain


def _sets(spec: Spec) -> dict[str, str]:
    """Image sets by kind, under the root."""
    samples = f"samples/{spec.sample.name}/images"
    return {"real": "images/val", "reconstructed": "reconstructions/val/images", "generated": samples}


def _inputs(spec: Spec, root: str, engine: OcrEngine | None, validation: Row | None) -> SummaryInputs:
    """All that decides the result."""
    names = ("images/train", "codes/train", "codes/val", *_sets(spec).values())
    return SummaryInputs(
        sets={name: open_shards(storage.join(root, name)).manifest.digest for name in names},
        settings=spec.evaluate.model_dump(mode="json") | {"ema": spec.sample.ema},
        validation_images=_validated_images(spec),
        validated_at=validation["step"] if validation else None,
        engine=engine_info(engine) if engine else None,
    )


def _reconstruction(spec: Spec, root: str) -> Quality:
    """PSNR and SSIM at full depth: those of `dnd reconstruct`, where it has compared the same images."""
    originals = open_shards(storage.join(root, "images/val"))
    copies = open_shards(storage.join(root, "reconstructions/val/images"))
    number = spec.evaluate.reconstructions
    uri = storage.join(root, "evaluation", "reconstruction-val.json")
    made = read_result(uri) if storage.exists(uri) else None
    if isinstance(made, Reconstruction) and made.inputs == reconstruction_inputs(originals, copies, number):
        return Quality(**made.depths[-1].model_dump(include=set(Quality.model_fields)))
    return reconstruction_quality(pairs(originals, copies, number))


def _words(spec: Spec, root: str, engine: OcrEngine | None) -> SummaryWords:
    """Shares of real words by kind of image; says so where OCR is absent or no text is known."""
    known = vocabulary(drawn_texts(open_shards(storage.join(root, "images/train"))))
    if engine is None or not known:
        return SummaryWords(missing="no OCR engine is installed" if known else "the images have no text")
    found = dict[str, RealWords]()
    for kind, name in _sets(spec).items():
        pictures = ShardImages(storage.join(root, name))
        chosen = spread(len(pictures), spec.evaluate.ocr_images)
        readings = read_pictures(pictures, chosen, engine, cache_of(root))
        texts = [reading.text for reading in readings]
        unread = unread_reasons(readings)
        found[kind] = RealWords(
            **dict(real_word_share(texts, known)),
            num_unread=unread.total(),
            unread=unread,
            texts=tuple(texts[:32]),
        )
    about = {**dict(engine_info(engine)), "aim": AIM, "vocabulary": len(known)}
    return SummaryWords.model_validate(about | found)
