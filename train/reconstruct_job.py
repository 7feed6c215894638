"""`dnd reconstruct`: decodes a split code by code, scores each depth, and draws them side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_specs import storage
from data_specs.records import Reconstruction
from data_specs.spec import Spec
from pipeline.stages import Option, Stage, register
from pipeline.workers import Workers
from tokenize_jobs.job import reconstruct


class Reconstruct(Stage):
    """Reconstructions from 1 … d codes a position, and what each depth loses."""

    name = "reconstruct"
    title = (
        "Reconstructions from 1 ... d codes a position: a picture with differences, and what each depth loses. "
        "LPIPS is measured where tokenizer.lpips_weights names its weights. ROOT/reconstructions/SPLIT, and "
        "ROOT/evaluation/reconstruction-SPLIT.json, which the report shows."
    )
    reads = ("render", "train-tokenizer", "tokenize", "decode")
    makes = "reconstructions/{train,val}"
    keys = ("evaluate.reconstructions", "tokenizer.lpips_weights")
    options = (
        Option("split", "split whose codes are decoded", "val"),
        Option("shown", "images in the picture", 8, int),
    )

    def run(
        self, spec: Spec, root: str, workers: Workers, split: str = "val", shown: int = 8, **_: Any
    ) -> Iterator[str]:
        for row in score_depths(spec, root, split, workers, shown).depths:
            size = f"{row.bits_per_pixel:.3f} bits/pixel, {row.information_compression_ratio:.2%} of the image"
            used = f"{row.codebook_share_used:.0%} of the codebook used"
            psnr = "exact" if row.psnr is None else f"PSNR {row.psnr:.2f} dB"
            lpips = "" if row.lpips is None else f", LPIPS {row.lpips:.4f}"
            yield f"depth {row.depth}: {psnr}, SSIM {row.ssim:.4f}{lpips}, {size}, {used}"
        yield f"picture: {storage.join(root, 'reconstructions', split, 'depths.png')}"


def score_depths(spec: Spec, root: str, split: str, workers: Workers, shown: int) -> Reconstruction:
    """Write ROOT/reconstructions/SPLIT with depths.png and ROOT/evaluation/reconstruction-SPLIT.json; return that."""
    from data_specs import open_shards
    from pipeline.png import encode_photo
    from tokenize_jobs.networks import lpips_of
    from train.evaluation.reading import spread
    from train.evaluation.reconstruction import depth_picture, evaluate_by_depth
    from train.evaluation.results import write_result

    lpips = lpips_of(spec, root)
    codes = open_shards(storage.join(root, "codes", split))
    if not len(codes):
        raise ValueError(f"{codes.uri}: the shard set is empty: there is nothing to reconstruct")
    originals = open_shards(storage.join(root, spec.tokenize.images[split]))  # type: ignore[index]
    by_depth = [open_shards(storage.join(root, name)) for name in reconstruct(spec, root, split, workers)]
    result = evaluate_by_depth(spec, split, originals, by_depth, codes, lpips)
    picture = depth_picture(originals, by_depth, spread(len(originals), shown))
    storage.write(storage.join(root, "reconstructions", split, "depths.png"), encode_photo(picture))
    write_result(storage.join(root, "evaluation", f"reconstruction-{split}.json"), result)
    return result


register(Reconstruct())
