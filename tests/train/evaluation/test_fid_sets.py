"""The FID family over sets of images: sources, references, extractors, ranks, and the errors of wrong input."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from data_specs import manifest, receipts
from data_specs.records import Identity, RangeUnit, Sample
from data_specs.units import write_plan
from train.evaluation import features, fid, references, sources
from train.evaluation.frechet import Moments
from train.evaluation.vision_ops import import_torchvision


def pictures(seed, count, size=16):
    """Smooth random pictures, uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 4, 4)))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return fine.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def builtin():
    return features.load_extractor("builtin")


@pytest.fixture
def two_sets(tmp_path):
    return npz(tmp_path / "a.npz", arr_0=pictures(0, 150)), npz(tmp_path / "b.npz", arr_0=pictures(1, 160))


def gfid(samples, reference, extractor, **options):
    return fid.evaluate_images("gfid", sources.open_images(samples), reference, extractor, **options)


def test_a_set_against_itself_is_zero_and_named_for_its_extractor(two_sets, builtin):
    reference = references.open_reference(two_sets[0], "training", crop="adm 16")
    result = gfid(two_sets[0], reference, builtin)
    figures = result.figures
    assert figures["frechet_distance[builtin-random-conv-32]"] == pytest.approx(0, abs=1e-6)
    assert figures["precision[builtin-random-conv-32]"] == figures["recall[builtin-random-conv-32]"] == 1.0
    assert not any("fid" in name.lower() for name in figures)
    about = result.reference
    assert (about.kind, about.count, about.crop, about.statistics) == (
        "training",
        150,
        "adm 16",
        "computed",
    )
    assert about.digest == result.samples.digest and len(about.digest) == 64


def test_worse_pictures_are_further_away(tmp_path, two_sets, builtin):
    noisy = pictures(2, 160) + np.random.default_rng(0).integers(0, 60, (160, 16, 16, 3)).astype(np.uint8)
    reference = references.open_reference(two_sets[0], "training")
    name = "frechet_distance[builtin-random-conv-32]"
    near = gfid(two_sets[1], reference, builtin).figures[name]
    far = gfid(npz(tmp_path / "noisy.npz", arr_0=noisy), reference, builtin).figures[name]
    assert 0 < near < far / 2


def test_the_built_in_extractor_is_the_same_everywhere(builtin):
    assert builtin.digest == features.load_extractor("builtin").digest
    rows = builtin(pictures(3, 2)).pool
    assert rows.shape == (2, 32) and rows.dtype == np.float32
    assert builtin.digest[:16] == "f6b1bed4ceb82089"


def test_pieces_merge_to_the_whole_and_thin_the_rows_evenly(two_sets, builtin, monkeypatch):
    monkeypatch.setattr(fid, "MANIFOLD_IMAGES", 100)
    monkeypatch.setattr(fid, "PIECE", 64)
    images = sources.open_images(two_sets[0])
    parts = [part for start in (0, 64, 128) for part in fid.pieces(images, builtin, start, min(start + 64, 150))]
    whole, merged = fid.extract(images, builtin), fid.merge(parts)
    assert whole.rows.shape == (100, 32) and whole.pool.count == 150
    assert np.array_equal(merged.rows, whole.rows) and np.array_equal(merged.pool.scatter, whole.pool.scatter)
    rows = np.concatenate([builtin(batch).pool for batch in images.batches(0, 150, 64)]).astype(np.float64)
    np.testing.assert_allclose(whole.pool.covariance(), np.cov(rows, rowvar=False), rtol=1e-6)


@pytest.mark.system
def test_workers_give_the_figures_of_one_process(tmp_path, builtin, ray_session, monkeypatch):
    from pipeline.png import encode_photo
    from pipeline.workers import UnitsFailed, Workers
    from train.evaluation.job import extract_on

    uri = npz(tmp_path / "many.npz", arr_0=pictures(0, 1100))
    images = sources.open_images(uri)
    whole, shared = fid.extract(images, builtin), extract_on(Workers(None, 2), "builtin", images)
    np.testing.assert_allclose(shared.rows, whole.rows, rtol=1e-5)  # workers compute with one thread
    np.testing.assert_allclose(shared.pool.covariance(), whole.pool.covariance(), rtol=1e-5, atol=1e-9)
    assert shared.pool.count == 1100
    here = extract_on(Workers(num_workers=0), "builtin", images)
    assert np.array_equal(here.pool.scatter, shared.pool.scatter) and np.array_equal(here.rows, shared.rows)
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encode_photo(pictures(number, 1)[0]) if number else b"no picture")
    with pytest.raises(UnitsFailed, match=r"features .*: 1 units failed .unit 0: ValueError: .*0\.png: cannot be read"):
        extract_on(Workers(num_workers=0), "builtin", sources.open_images(str(folder)))


def test_folder_npz_and_shards_of_the_same_pictures_give_the_same_figure(tmp_path, two_sets, builtin):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, picture in enumerate(pictures(0, 150)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    images = sources.open_images(str(folder))
    assert images.keys()[:11] == [str(i) for i in range(11)]
    whole = np.concatenate(list(images.batches(0, 150, 64)))
    assert (whole == pictures(0, 150)).all()
    assert (np.concatenate(list(sources.open_images(two_sets[0]).batches(70, 130, 13))) == whole[70:130]).all()
    reference = references.open_reference(two_sets[1], "training")
    shards = shard_set(tmp_path / "images" / "train", pictures(0, 150))
    figures = [gfid(uri, reference, builtin).figures for uri in (str(folder), shards, two_sets[0])]
    assert figures[0] == figures[1] == figures[2]


def shard_set(folder, images):
    """A shard set of two shards of these images; its URI."""
    units = [RangeUnit(unit=number, first=number, count=1) for number in range(2)]
    plan = write_plan(str(folder), "d" * 64, Identity(stage="images"), units)
    for unit in range(2):
        samples = []
        for i in range(len(images) * unit // 2, len(images) * (unit + 1) // 2):
            png = io.BytesIO()
            Image.fromarray(images[i]).save(png, "png")
            samples.append(Sample(f"k{i}", {"png": png.getvalue(), "cls": b"0", "json": b"{}"}))
        receipts.commit(str(folder), plan.digest, unit, samples)
    manifest.merge(plan, "images")
    return str(folder)


def test_shards_of_the_train_split_say_so_themselves(tmp_path):
    uri = shard_set(tmp_path / "images" / "train", pictures(0, 6))
    reference = references.open_reference(uri)
    assert (reference.info.kind, reference.info.count) == ("training", 6)
    assert reference.images.keys() == [f"k{i}" for i in range(6)]
    with pytest.raises(ValueError, match="holds training images, not validation-originals"):
        references.open_reference(uri, "validation-originals")


def test_statistics_are_read_with_what_they_say_of_themselves(tmp_path, two_sets, builtin):
    real = fid.extract(sources.open_images(two_sets[1]), builtin)
    uri = str(tmp_path / "train-statistics.npz")
    about = {"kind": "training", "crop": "adm 16", "extractor": builtin.name}
    np.savez(uri, mu=real.pool.mean, sigma=real.pool.covariance(), count=real.pool.count, **about)
    reference = references.open_reference(uri)
    assert (reference.info.kind, reference.info.count, reference.info.crop) == ("training", 160, "adm 16")
    stored = gfid(two_sets[0], reference, builtin)
    computed = gfid(two_sets[0], references.open_reference(two_sets[1], "training"), builtin)
    name = "frechet_distance[builtin-random-conv-32]"
    assert stored.figures[name] == pytest.approx(computed.figures[name], rel=1e-9)
    assert stored.reference.statistics == "precomputed" and list(stored.figures) == [name]
    assert "no precision and recall" in stored.notes[0]
    with pytest.raises(ValueError, match="statistics of builtin"):
        gfid(two_sets[0], reference, features.ModuleExtractor(features.RandomConvolutions(), "another"))


def test_gfid_refuses_validation_images_and_rfid_the_training_set(two_sets, builtin):
    validation = references.open_reference(two_sets[1], "validation-originals")
    with pytest.raises(ValueError, match="gfid is measured against training images, this reference is validation"):
        gfid(two_sets[0], validation, builtin)
    forced = gfid(two_sets[0], validation, builtin, forced=True)
    assert forced.forced and forced.reference.kind == "validation-originals"
    training = references.open_reference(two_sets[0], "training")
    with pytest.raises(ValueError, match="rfid is measured against validation-originals"):
        fid.evaluate_images("rfid", sources.open_images(two_sets[0]), training, builtin)


def test_rfid_asks_for_the_same_originals_in_number_size_and_name(tmp_path):
    samples = sources.open_images(npz(tmp_path / "s.npz", arr_0=pictures(0, 8)))
    fewer = references.open_reference(npz(tmp_path / "f.npz", arr_0=pictures(0, 7)), references.ORIGINALS)
    larger = references.open_reference(npz(tmp_path / "l.npz", arr_0=pictures(0, 8, 32)), references.ORIGINALS)
    assert "8 reconstructions against 7 originals" in references.check_reference("rfid", fewer, samples, True)[0]
    assert "not the same crop" in references.check_reference("rfid", larger, samples, True)[0]
    folders = []
    for names in (("a", "b"), ("a", "c")):
        folders.append(tmp_path / "".join(names))
        folders[-1].mkdir()
        for name in names:
            Image.fromarray(pictures(0, 1)[0]).save(folders[-1] / f"{name}.png")
    other = references.open_reference(str(folders[1]), references.ORIGINALS)
    with pytest.raises(ValueError, match="keys are not those"):
        references.check_reference("rfid", other, sources.open_images(str(folders[0])))
    same = references.open_reference(str(folders[0]), references.ORIGINALS)
    assert references.check_reference("rfid", same, sources.open_images(str(folders[0]))) == []


def test_a_reference_must_say_what_it_holds(two_sets):
    with pytest.raises(ValueError, match="give the reference's kind"):
        references.open_reference(two_sets[0])
    with pytest.raises(ValueError, match="no kind of reference 'test'"):
        references.open_reference(two_sets[0], "test")
    assert references._kind_of_shards("s3://bucket/run/images/train") == "training"
    assert references._kind_of_shards("/run/images/val/manifest.json") == "validation-originals"
    assert references._kind_of_shards("/run/samples/x/images") is None


WRONG_ARRAYS = [
    ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "arr_0 is float32"),
    ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "channels first"),
    ({"arr_0": np.zeros((2, 8, 8), np.uint8)}, r"images are \[N, H, W, 3\]"),
    ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, "no image"),
    ({"other": np.zeros(2)}, "no arr_0"),
    ({"arr_0": np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8))}, "Fortran"),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG_ARRAYS)
def test_wrong_arrays_are_refused_with_a_remedy(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        sources.open_images(npz(tmp_path / "x.npz", **arrays))


def test_missing_empty_and_broken_sources_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.npz").write_bytes(b"not a zip")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"not a picture")
    for uri, message in [
        (tmp_path / "absent.npz", "no such file"),
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "empty", "holds no picture"),
        (tmp_path / "broken.npz", "not an .npz"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            sources.open_images(str(uri))
        assert str(uri) in str(error.value)
    (tmp_path / "bad" / "y.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "bad" / "z.png", "tiff")
    for index, name in enumerate("xyz"):  # no decoder but those of the allow-list is looked for
        with pytest.raises(ValueError, match=rf"{name}.png: cannot be read as a picture \(cannot identify"):
            sources.open_images(str(tmp_path / "bad"))[index]
    with pytest.raises(ValueError, match=r"x.png: cannot be read"):
        list(sources.open_images(str(tmp_path / "bad")).batches(0, 1, 1))


def test_pictures_of_several_sizes_are_refused(tmp_path):
    for size in (8, 9):
        Image.new("RGB", (size, 8)).save(tmp_path / f"{size}.png")
    for batch in (1, 2):
        with pytest.raises(ValueError, match=r"9.png: 9x8 px in a set of 8x8 px \(images of several sizes\)"):
            list(sources.open_images(str(tmp_path)).batches(0, 2, batch))


def test_greys_palettes_and_transparency_become_rgb_and_deep_pixels_are_refused(tmp_path):
    rgba = np.dstack([pictures(0, 1)[0], np.full((16, 16), 7, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., 0]).save(tmp_path / "b.PNG")
    Image.fromarray(rgba[..., :3]).quantize(8).save(tmp_path / "c.png")
    images = next(sources.open_images(str(tmp_path)).batches(0, 3, 3))
    assert (images[0] == rgba[..., :3]).all() and (images[1] == rgba[..., :1]).all() and images[2].std() > 0
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep" / "x.png")
    with pytest.raises(ValueError, match="eight bits"):
        next(sources.open_images(str(tmp_path / "deep")).batches(0, 1, 1))


def test_compressed_and_damaged_archives(tmp_path):
    whole = pictures(0, 40)
    np.savez_compressed(tmp_path / "small.npz", arr_0=whole)
    images = sources.open_images(str(tmp_path / "small.npz"))
    assert (np.concatenate(list(images.batches(5, 40, 16))) == whole[5:]).all()
    assert sources.open_images(npz(tmp_path / "one.npz", arr_0=whole[:1])).keys() is None
    data = bytearray((tmp_path / "small.npz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    (tmp_path / "damaged.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged\.npz: arr_0 is damaged after image"):
        list(sources.open_images(str(tmp_path / "damaged.npz")).batches(0, 40, 16))
    np.save(tmp_path / "array.npy", whole)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    for open_it in (sources.open_images, references.open_reference):
        with pytest.raises(ValueError, match=r"array\.npz: not an .npz"):
            open_it(str(tmp_path / "array.npz"))
    objects = npz(tmp_path / "objects.npz", arr_0=np.array([{"a": 1}]))
    with pytest.raises(ValueError, match="arr_0 is object"):
        sources.open_images(objects)


class Counting:
    """An extractor that counts the images whose features it made."""

    name, digest, is_fid, num_images = "counting", "0" * 64, False, 0

    def __call__(self, images):
        self.num_images += len(images)
        return features.Features(images.reshape(len(images), -1)[:, :8].astype(np.float32))


def test_an_array_that_holds_fewer_images_than_it_says_is_refused_where_it_ends(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**13, 4, 4, 3)})
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(1100 * 4 * 4 * 3))
    with pytest.raises(ValueError, match=r"short\.npz: arr_0 ends within image 1100"):
        fid.extract(sources.open_images(str(tmp_path / "short.npz")), Counting())


def test_counts_too_small_are_refused_before_features_are_made(tmp_path):
    few, many = (npz(tmp_path / f"{n}.npz", arr_0=pictures(0, n)) for n in (8, 90))
    stored = npz(tmp_path / "stored.npz", mu=np.zeros(9), sigma=np.eye(9))
    for samples, reference, message in (
        (few, many, "8 images for 8 features"),
        (many, few, "8 images for 8 features"),
        (many, stored, "8 and 9 features"),
    ):
        counting = Counting()
        with pytest.raises(ValueError, match=message):
            gfid(samples, references.open_reference(reference, "training"), counting)
        assert counting.num_images == 1


def test_the_built_in_extractor_scores_as_few_images_as_the_demo_draws(tmp_path, builtin):
    few, other = (npz(tmp_path / f"{n}.npz", arr_0=pictures(n, 64)) for n in range(2))
    figures = gfid(few, references.open_reference(other, "training"), builtin).figures
    kinds = ("frechet_distance", "precision", "recall", "density", "coverage", "kernel_distance")
    assert list(figures) == [f"{kind}[builtin-random-conv-32]" for kind in kinds]
    assert all(np.isfinite(value) for value in figures.values())


BROKEN_STATISTICS = [
    ({"mu": np.zeros(4)}, "come together"),
    ({"mu": np.zeros(4), "sigma": np.eye(3)}, "fit each other"),
    ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "not finite"),
    ({"mu": np.array(["a"] * 4), "sigma": np.eye(4)}, r"x\.npz: not an .npz of plain arrays .could not convert string"),
    ({"mu": np.zeros(4), "sigma": np.eye(4), "count": "many"}, r"x\.npz: not an .npz of plain arrays .invalid literal"),
    ({"mu": np.zeros(4), "sigma": np.eye(4), "count": np.inf}, r"x\.npz: not an .npz of plain arrays .cannot convert"),
    ({"mu": np.zeros(4), "sigma": np.eye(4), "count": 1j}, r"x\.npz: not an .npz of plain arrays"),
    ({"mu": np.zeros(4), "sigma": np.eye(4), "count": -1}, r"x\.npz: not an .npz of plain arrays .count: -1 is no"),
]


@pytest.mark.parametrize(("arrays", "message"), BROKEN_STATISTICS)
def test_broken_statistics_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        references.open_reference(npz(tmp_path / "x.npz", **arrays), "training")


def test_statistics_of_another_extractor_are_refused_by_their_dimension(tmp_path, two_sets, builtin):
    foreign = references.open_reference(npz(tmp_path / "x.npz", mu=np.zeros(2048), sigma=np.eye(2048)), "training")
    with pytest.raises(ValueError, match="32 and 2,048 features"):
        gfid(two_sets[0], foreign, builtin)


def test_spatial_features_lie_as_tensorflow_lays_them():
    activations = torch.arange(2 * 9 * 17 * 17).reshape(2, 9, 17, 17)
    rows = features.spatial_rows(activations)
    assert rows.shape == (2, 17 * 17 * 7)
    for y, x, channel in [(0, 0, 0), (0, 0, 6), (0, 1, 0), (16, 5, 3)]:
        assert (rows[:, (y * 17 + x) * 7 + channel] == activations[:, channel, y, x]).all()


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in the layout of the 2015-12-05 file."""
    import_torchvision()
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False, weights=None)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_equals_pytorch_fids_network_and_is_not_called_fid_with_other_weights(inception_file, monkeypatch):
    import pytorch_fid.inception as theirs

    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *a, **k: torch.load(inception_file))
    network = theirs.fid_inception_v3().eval()
    kept = {}
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: kept.update(spatial=output))
    network.avgpool.register_forward_hook(lambda module, inputs, output: kept.update(pool=output))
    images = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), dtype=np.uint8)
    with torch.inference_mode():
        logits = network((torch.from_numpy(images).permute(0, 3, 1, 2).float() - 128) / 128) - network.fc.bias

    extractor = features.load_extractor(f"inception:{inception_file}")
    ours = extractor(images)
    assert [x.shape for x in ours] == [(2, 2048), (2, 2023), (2, 1008)]
    np.testing.assert_allclose(ours.pool, kept["pool"].flatten(1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.spatial[:, :7], kept["spatial"][:, :7, 0, 0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.spatial[:, -7:], kept["spatial"][:, :7, 16, 16], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours.logits, logits, rtol=1e-3, atol=1e-4)
    assert (
        not extractor.is_fid
        and extractor.name.startswith("inception-")
        and extractor.name.endswith(extractor.digest[:8])
    )


def test_every_figure_under_the_published_inception_has_its_plain_name(two_sets, monkeypatch):
    """The network stands in for Inception: 8 pool features, 10 spatial ones, 5 classes."""

    class Stand:
        name, digest, is_fid = "inception-2015-12-05", "0" * 64, True

        def __call__(self, images):
            flat = images.reshape(len(images), -1).astype(np.float32) / 255
            return features.Features(flat[:, :8], flat[:, 100:110], flat[:, 50:55])

    training = references.open_reference(two_sets[0], "training")
    result = gfid(two_sets[1], training, Stand())
    names = ["gfid[160 images]", "sfid", "inception_score", "precision", "recall", "density", "coverage", "kid"]
    assert list(result.figures) == names
    assert any("permutation of the samples (seed 2020)" in note for note in result.notes)
    monkeypatch.setattr(fid, "WHOLE", 160)
    assert next(iter(gfid(two_sets[1], training, Stand()).figures)) == "gfid"
    flat = pictures(0, 150).reshape(150, -1) / 255
    expected = Moments.of(flat[:, :8]).mean
    np.testing.assert_allclose(fid.extract(sources.open_images(two_sets[0]), Stand()).pool.mean, expected, rtol=1e-6)
    originals = references.open_reference(two_sets[1], "validation-originals")
    again = fid.evaluate_images("rfid", sources.open_images(two_sets[1]), originals, Stand())
    assert again.figures["rfid"] == pytest.approx(0, abs=1e-6)


def test_inception_score_of_samples_sorted_by_class_is_that_of_shuffled_ones(tmp_path, monkeypatch):
    """Eight sure classes in four splits: 8 in any order, 2 where each split holds two of them."""

    class Stand:
        name, digest, is_fid = "inception-2015-12-05", "0" * 64, True

        def __call__(self, images):
            flat = images.reshape(len(images), -1).astype(np.float32)
            return features.Features(flat[:, :2], None, np.eye(8)[images[:, 0, 0, 0].astype(int)] * 1000)

    monkeypatch.setattr("train.evaluation.inception_score.SPLIT", 1000)
    images = np.random.default_rng(0).integers(0, 256, (4000, 2, 2, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(4000) // 500
    orders = {"sorted": images, "shuffled": np.random.default_rng(1).permutation(images)}
    for name, ordered in orders.items():
        set_ = sources.open_images(npz(tmp_path / f"{name}.npz", arr_0=ordered))
        assert fid.extract(set_, Stand()).scores.score() == pytest.approx(8, rel=0.01), name


def test_missing_or_foreign_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no Inception weights here"):
        features.load_extractor(f"inception:{tmp_path / 'absent.pth'}")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not the weights of the 2015-12-05 Inception"):
        features.load_extractor(f"inception:{tmp_path / 'other.pth'}")


def test_a_models_own_code_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    """A folder of `transformers` may name classes of a file in it; nobody is prompted whether to run that."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    names = {name: f"own.{name}" for name in ("AutoConfig", "AutoModel", "AutoImageProcessor")}
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps({"model_type": "own", "auto_map": names}))
    with pytest.raises(ValueError, match=rf"^{tmp_path}: transformers cannot load ImageProcessor \([^\n]*\)$"):
        features.load_extractor(f"transformers:{tmp_path}")
    assert not (tmp_path / "ran").exists()


class Evil:
    def __reduce__(self):
        return (exec, ("import pathlib; pathlib.Path('/tmp/dnd-evaluation-was-here').touch()",))


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    from pathlib import Path

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth"):
        features.load_extractor(f"inception:{tmp_path / 'evil.pth'}")
    assert not Path("/tmp/dnd-evaluation-was-here").exists()


def test_any_module_can_be_plugged_in(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(
        "import torch\nclass Mean(torch.nn.Module):\n    def forward(self, x): return x.float().mean(dim=(2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    extractor = features.load_extractor("module:my_features:Mean")
    images = pictures(0, 5)
    np.testing.assert_allclose(extractor(images).pool, images.mean(axis=(1, 2)), rtol=1e-5)
    assert extractor.name == "my_features:Mean"
    for wrong in ("module:my_features:Absent", "module:no_such_module:f", "builtin:x", "clip"):
        with pytest.raises(ValueError, match=wrong.split(":")[0]):
            features.load_extractor(wrong)


def test_a_transformers_vision_model_by_path(tmp_path):
    import_torchvision()
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    extractor = features.load_extractor(f"transformers:{tmp_path}")
    rows = extractor(pictures(0, 3)).pool
    assert rows.shape == (3, 16) and not np.allclose(rows[0], rows[1])
    assert extractor.name == tmp_path.name and not extractor.is_fid
    with pytest.raises(ValueError, match="no vision model here"):
        features.load_extractor(f"transformers:{tmp_path / 'absent'}")
