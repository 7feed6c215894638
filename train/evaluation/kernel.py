"""KID (Bińkowski et al. 2018), as torch-fidelity computes it."""

from importlib.util import find_spec

import numpy as np

from train.evaluation.vision_ops import import_torchvision

SUBSETS, SUBSET_SIZE = 100, 1000


def kernel_distance(reference: np.ndarray, samples: np.ndarray) -> tuple[float | None, str]:
    """Unbiased squared maximum mean discrepancy of features [N, D] and [M, D] under the kernel (x y / D + 1)^3.

    Returns:
        The mean over 100 subsets of at most 1,000 rows of each set, None without torch-fidelity; and how it was made.
    """
    if find_spec("torch_fidelity") is None:
        return None, "no KID: torch-fidelity is not installed (pip install torch-fidelity)"
    import_torchvision()
    import torch
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(SUBSET_SIZE, len(reference), len(samples))
    sets = (torch.from_numpy(rows) for rows in (samples, reference))
    score = kid_features_to_metric(*sets, kid_subsets=SUBSETS, kid_subset_size=size, verbose=False)
    return float(score[KEY_METRIC_KID_MEAN]), f"KID by torch-fidelity: mean over {SUBSETS} subsets of {size:,}"
