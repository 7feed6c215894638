"""All checks in order."""

from __future__ import annotations

from collections.abc import Iterator

from infra.doctor import Finding
from infra.doctor.clusters import ray_finding, slurm_finding
from infra.doctor.machine import machine_findings
from infra.doctor.storage import storage_findings


def findings(root: str | None, ray_address: str | None, slurm: bool) -> Iterator[Finding]:
    """What is found of this machine, and of root, Ray and Slurm where they are asked for."""
    yield from machine_findings(root)
    yield from storage_findings(root) if root else ()
    yield from [ray_finding(ray_address)] if ray_address else ()
    yield from [slurm_finding()] if slurm else ()
