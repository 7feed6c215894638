"""The formulas of the FID family against independent implementations on the same features, and against closed forms."""

import subprocess
import sys
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from train.evaluation.frechet import Moments, frechet_distance, kernel_distance
from train.evaluation.inception_score import ScoreSums, shuffled_places
from train.evaluation.manifolds import compare_manifolds, manifold_radii
from train.evaluation.vision_ops import import_torchvision

import_torchvision()


def correlated(rng, count, dim, shift=0.0):
    return rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) / np.sqrt(dim) + shift


def distance(a, b):
    x, y = Moments.of(a), Moments.of(b)
    return frechet_distance(x.mean, x.covariance(), y.mean, y.covariance())


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    return correlated(rng, 512, 128), correlated(rng, 600, 128, 0.3)


def test_fid_equals_pytorch_fid_and_torch_fidelity(sets):
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = sets
    ours = distance(a, b)
    theirs = [np.mean(a, 0), np.cov(a, rowvar=False), np.mean(b, 0), np.cov(b, rowvar=False)]
    assert ours == pytest.approx(calculate_frechet_distance(*theirs), rel=1e-6)
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in sets]
    assert ours == pytest.approx(
        fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"], rel=1e-6
    )


def test_moments_in_batches_and_by_ranks_equal_numpys(sets):
    features = sets[0] + 1000.0  # a mean far from zero is where naive sums lose their digits
    ranks = [reduce(add, map(Moments.of, np.array_split(part, 7))) for part in np.array_split(features, 3)]
    whole = reduce(add, ranks)
    assert whole.count == 512
    np.testing.assert_allclose(whole.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance(), np.cov(features, rowvar=False), rtol=1e-8, atol=1e-10)


def test_closed_form_of_two_gaussians():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    x, y = rng.uniform(0.1, 3, 32), rng.uniform(0.1, 3, 32)
    mu1, mu2 = rng.standard_normal((2, 32))
    result = frechet_distance(mu1, basis * x**2 @ basis.T, mu2, basis * y**2 @ basis.T)
    assert result == pytest.approx(np.sum((mu1 - mu2) ** 2) + np.sum((x - y) ** 2), rel=1e-9)


def test_identical_sets_give_zero_and_a_shift_its_square(sets):
    assert distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-6)
    assert distance(sets[0], sets[0] + 0.25) == pytest.approx(128 * 0.25**2, rel=1e-6)


def test_a_singular_product_takes_the_eps_rule():
    sigma = np.diag([1.0, 1.0, 1.0], k=1)  # nilpotent: it has no square root
    with pytest.warns(UserWarning, match="singular"):
        assert np.isfinite(frechet_distance(np.zeros(4), sigma, np.zeros(4), np.eye(4)))


def test_too_few_images_and_differing_extractors_are_refused(sets):
    with pytest.raises(ValueError, match="100 images for 128 features"):
        Moments.of(sets[0][:100]).covariance()
    with pytest.raises(ValueError, match="different extractors"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))


def test_inception_score_equals_torch_fidelity_and_does_not_depend_on_batches_or_ranks():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = np.random.default_rng(2).standard_normal((20_000, 40)) * 3
    expected = isc_features_to_metric(torch.from_numpy(logits), splits=4)["inception_score_mean"]
    ranks, places = [], shuffled_places(20_000)
    for start, stop in ((0, 7003), (7003, 20_000)):
        batches = [slice(first, min(first + 512, stop)) for first in range(start, stop, 512)]
        ranks.append(reduce(add, (ScoreSums.of(logits[chosen], places[chosen]) for chosen in batches)))
    assert (ranks[0] + ranks[1]).score() == pytest.approx(expected, rel=1e-6)


def test_inception_score_of_sure_and_even_predictions_and_of_a_short_last_split():
    sure = ScoreSums.of(np.tile(np.eye(10) * 1000, (10, 1)), np.arange(100))
    even = ScoreSums.of(np.zeros((100, 10)), np.arange(100))
    assert sure.score() == pytest.approx(10.0) and even.score() == pytest.approx(1.0)
    sure += ScoreSums.of(np.tile(np.eye(10)[:1] * 1000, (100, 1)), 5000 + np.arange(100))
    assert sure.score() == pytest.approx((10 + 1) / 2)
    with pytest.raises(ValueError, match="empty"):
        ScoreSums({}).score()


def brute_precision_recall(real, made):
    def radii(x):
        return np.sort(cdist(x, x), axis=1)[:, 3]

    between = cdist(real, made)
    return (between <= radii(real)[:, None]).any(0).mean(), (between <= radii(made)[None]).any(1).mean()


def brute_density_coverage(real, made):
    """As prdc 0.2 has them, with its k = 5."""
    between, radii = cdist(real, made), np.sort(cdist(real, real), axis=1)[:, 5]
    density = (between < radii[:, None]).sum(0).mean() / 5
    return density, (between.min(1) < radii).mean()


def test_precision_and_recall_equal_scipy_sklearn_and_torch_fidelity_exactly(monkeypatch):
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    monkeypatch.setattr("train.evaluation.manifolds.BLOCK", 100)
    rng = np.random.default_rng(3)
    real = rng.standard_normal((430, 16)).astype(np.float32)
    made = (rng.standard_normal((350, 16)) * 0.8 + 0.4).astype(np.float32)
    precision, recall, density, coverage = compare_manifolds(real, made)
    theirs = brute_density_coverage(real.astype(np.float64), made.astype(np.float64))
    assert (density, coverage) == pytest.approx(theirs) and 0.1 < coverage < 0.95
    assert 0.1 < recall < 0.9 and 0.1 < precision < 0.95
    assert (precision, recall) == brute_precision_recall(real.astype(np.float64), made.astype(np.float64))
    theirs = calculate_precision_recall_full(torch.from_numpy(made), torch.from_numpy(real))
    assert (precision, recall) == pytest.approx(theirs, abs=1e-7)  # theirs are float32 means
    neighbours = NearestNeighbors(n_neighbors=4).fit(real).kneighbors(real)[0][:, 3]
    np.testing.assert_allclose(manifold_radii(torch.from_numpy(real))[:, 3].sqrt().numpy(), neighbours, rtol=1e-4)


def test_precision_and_recall_of_equal_and_of_distant_sets():
    real = np.random.default_rng(4).standard_normal((300, 8)).astype(np.float32)
    assert compare_manifolds(real, real)[:2] == (1.0, 1.0) and compare_manifolds(real, real).coverage == 1.0
    assert compare_manifolds(real, real + 100) == (0.0, 0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="at least 6"):
        compare_manifolds(real, real[:3])


def test_kid_equals_its_unbiased_estimate():
    """On one whole subset: sums of (x y / D + 1)^3 without the diagonals of the two sets."""
    rng = np.random.default_rng(5)
    real, made = (rng.standard_normal((60, 8)).astype(np.float32) + shift for shift in (0, 0.5))

    def kernel(x, y):
        return (x.astype(np.float64) @ y.T / 8 + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (60 * 59) for x in (real, made)]
    expected = sum(within) - 2 * kernel(real, made).mean()
    distance, note = kernel_distance(real, made)
    assert distance == pytest.approx(expected, rel=1e-4) and "100 subsets of 60" in note


MEMORY_SCRIPT = """
import sys
import numpy as np
from functools import reduce
from operator import add
from train.evaluation.frechet import Moments, frechet_distance
from train.evaluation.manifolds import compare_manifolds
count, dim = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
real, made = (rng.standard_normal((count, dim), np.float32) for _ in range(2))
x, y = (reduce(add, (Moments.of(f[i : i + 1024]) for i in range(0, count, 1024))) for f in (real, made))
distance = frechet_distance(x.mean, x.covariance(), y.mean, y.covariance())
scores = compare_manifolds(real, made)
# this program's own peak; ru_maxrss would be the parent's, inherited over exec
peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print(distance, *scores, peak / 1024)
"""


def measured_memory(count, dim):
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(count), str(dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    distance, precision, recall, _, _, mebibytes = map(float, done.stdout.split())
    assert distance > 0 and 0 <= precision <= 1 and 0 <= recall <= 1
    return mebibytes


def test_memory_of_a_few_images_stays_far_below_a_distance_matrix():
    assert measured_memory(9_000, 64) < 800  # two whole matrices would add 650 MB to about 350 MB of imports


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_thousand_inception_features_stay_within_three_gibibytes():
    assert measured_memory(50_000, 2048) < 3 * 1024
