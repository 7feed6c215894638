"""Ray and Slurm: whether they answer, whether Ray is our version there and takes our token."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import Counter

import ray

from data_specs.text import one_line
from infra.doctor import Finding


def ray_finding(address: str) -> Finding:
    """Check that the head's dashboard at `address` (http://HOST:8265) has our version of Ray and lets us in."""
    if not address.startswith(("http://", "https://")):
        return Finding("ray", False, f"{address}: give the dashboard's address, such as http://127.0.0.1:8265")
    try:
        theirs = json.loads(_get(address, "/api/version"))["ray_version"]
        if theirs != ray.__version__:
            remedy = f"pip install ray=={theirs} here, or start the cluster from requirements.lock"
            return Finding("ray", False, f"{theirs} at {address}, {ray.__version__} here: {remedy}")
        jobs = len(json.loads(_get(address, "/api/jobs/")))
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):
            return Finding("ray", False, f"{address} answers {error.code}: is it a Ray dashboard?")
        remedy = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the cluster's token"
        return Finding("ray", False, f"{address} refuses our token: {remedy}")
    except (OSError, ValueError, KeyError) as error:
        return Finding("ray", False, f"{address} does not answer as Ray's dashboard does ({error}): is the head up?")
    return Finding("ray", True, f"{theirs} at {address}, {jobs} jobs known")


def _get(address: str, path: str) -> bytes:
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = get_auth_headers_if_auth_enabled({})
    wanted = urllib.request.Request(address.rstrip("/") + path, headers=headers)  # noqa: S310
    with urllib.request.urlopen(wanted, timeout=10) as answer:  # noqa: S310
        content: bytes = answer.read()
    return content


def slurm_finding() -> Finding:
    """Check that the Slurm controller answers and that some node takes jobs."""
    if shutil.which("sinfo") is None:
        return Finding("slurm", False, "sinfo is not on PATH: run on a login node, or apt-get install slurm-client")
    command = ["timeout", "30", "sinfo", "-h", "-N", "-o", "%N %t"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return Finding(
            "slurm", False, f"{one_line(done.stderr) or 'no answer'}: check SLURM_CONF and that slurmctld runs"
        )
    states = Counter(dict(line.split() for line in done.stdout.splitlines()).values())
    usable = sum(states[state] for state in ("idle", "mix", "alloc", "comp"))
    text = ", ".join(f"{number} nodes {state}" for state, number in sorted(states.items())) or "no nodes"
    return Finding("slurm", usable > 0, text + ("" if usable else ": `sinfo -R` says why none takes jobs"))
