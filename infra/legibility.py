"""`dnd evaluate legibility`: figures of a root's samples, and of samples drawn at other temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_specs import open_shards, storage
from data_specs.records import Legibility, SweepPoint
from data_specs.root import spec_of, spec_of_samples
from data_specs.spec import Spec
from data_specs.text import say
from infra.report.charts import Chart, Series, chart_svg
from pipeline.workers import Workers
from train.evaluation.legibility import evaluate_legibility, sweep_point, training_text
from train.evaluation.ocr import OcrEngine
from train.evaluation.reading_cache import cache_of
from train.evaluation.sources import ImageSet, ShardImages
from train.sample_job import SAMPLE


def measure(
    root: str,
    sets: Mapping[str, ImageSet],
    engine: OcrEngine,
    num_images: int,
    temperatures: Sequence[float],
    workers: Workers,
    name: str,
) -> Legibility:
    """Return the result of `dnd evaluate legibility`; draw what the sweep lacks and write the picture NAME.svg.

    Args:
        sets: "real", "generated", and "reconstructed" where there are such.
        temperatures: of the sweep; none where the generated images are not this root's.
    """
    training = training_text(open_shards(storage.join(root, "images/train")))
    cache = cache_of(root)
    result = evaluate_legibility(sets, training, engine, cache, num_images)
    has_model = storage.exists(storage.join(root, "transformer", "transformer.json"))
    drawn = spec_of_samples(root, sets["generated"].uri) if has_model else None
    sampling = drawn.sample.model_dump(mode="json", exclude={"name", "num"}) if drawn else {}
    sweep = list[SweepPoint]()
    for temperature in temperatures if drawn else ():
        assert drawn is not None
        pictures = _draw(drawn, temperature, num_images, root, workers)
        sweep.append(sweep_point(temperature, pictures, sets["real"], training, engine, cache, num_images))
    made = {"temperature": sampling.get("temperature"), "sampling": sampling, "sweep": tuple(sweep)}
    result = result.model_copy(update=made)
    if sweep:
        storage.write_text(storage.join(root, "evaluation", f"{name}.svg"), chart_svg(_chart(result)) + "\n")
    return result


def _chart(result: Legibility) -> Chart:
    """Share of real words against distinct words: a point for each temperature, and real text as one of its own."""
    drawn = [(point.distinct_words, point.real_words or 0.0) for point in result.sweep]
    real = (result.distinct_words["real"], result.real_words["real"] or 0.0)
    curves = [
        Series("samples, by temperature", drawn, [f"{point.temperature:g}" for point in result.sweep]),
        Series("real text", [real], ["real"]),
    ]
    return Chart("Legibility", "distinct real words", "share of real words", curves, (0.0, 1.0))


def sweep_name(name: str, temperature: float) -> str:
    """Return the name of the samples of another temperature: NAME-t070 for .7, NAME-t70p4 for .704."""
    return f"{name}-t{round(100 * temperature, 4):03g}".replace(".", "p")


def _draw(made: Spec, temperature: float, num_images: int, root: str, workers: Workers) -> ShardImages:
    """Return the pictures of one temperature, drawing them where they do not exist.

    All else is as in the samples that `made` describes.
    """
    name = made.sample.name
    if temperature != made.sample.temperature:
        name = sweep_name(name, temperature)
        num = min(num_images, made.sample.num)
        if storage.exists(storage.join(root, "samples", name, "spec.yaml")):
            drawn = spec_of(root, f"samples/{name}").sample.num
            name = name if num <= drawn else f"{name}-n{num}"  # those of a smaller --num stay as they are
            num = max(num, drawn)
        options = {"name": name, "temperature": temperature, "num": num}
        made = made.changed("sample", **options)
        for line in SAMPLE.run(made, root, workers):
            say(line)
    return ShardImages(storage.join(root, "samples", name, "images"))
