"""GPUs and what ties them together: the build of torch against the driver, NCCL, the fabric's libraries."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from infra.doctor import Finding

OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}  # that serves any minor version of this CUDA
DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def gpu_findings(devices: Path = Path("/dev"), fabric: Path = Path("/sys/class/infiniband")) -> Iterator[Finding]:
    """Yield findings on torch's build, the GPUs, the driver, NCCL and the fabric.

    The build is checked against the GPUs whose device nodes are under `devices`.
    """
    gpus = len([node for node in devices.glob("nvidia*") if node.name[6:].isdigit()])
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", False, f"cannot be imported ({error}): install it anew from requirements.lock")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    if gpus and not torch.version.cuda:
        version = torch.__version__.partition("+")[0]
        remedy = f"pip install torch=={version} --index-url https://download.pytorch.org/whl/cu130"
        yield Finding("torch", False, f"{torch.__version__} is a CPU build on a machine with {gpus} GPUs: {remedy}")
        return
    yield Finding("torch", True, f"{torch.__version__}, {build} build")
    yield _gpus(gpus)
    yield _nccl(bool(gpus))
    yield from fabric_findings(fabric)


def _gpus(gpus: int) -> Finding:
    import torch

    driver = driver_version()
    if not gpus:
        return Finding("gpu", True, "none here")
    if driver and torch.version.cuda and (complaint := too_old(driver, torch.version.cuda)):
        return Finding("gpu", False, complaint)
    if not torch.cuda.is_available():
        remedy = "give the container its GPUs, or update the driver (nvidia-smi names the newest CUDA that it serves)"
        return Finding("gpu", False, f"{gpus} devices that torch cannot use with {_named(driver)}: {remedy}")
    names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    return Finding("gpu", True, f"{torch.cuda.device_count()} x {', '.join(names)}, {_named(driver)}")


def driver_version(path: Path = DRIVER_VERSION) -> str | None:
    """Return the version of the loaded driver, or None where none is loaded."""
    found = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", path.read_text()) if path.exists() else None
    return found[1] if found else None


def _named(driver: str | None) -> str:
    return f"driver {driver}" if driver else "no driver loaded"


def too_old(driver: str, cuda: str) -> str | None:
    """Return what is wrong with a driver for a build of torch, or None where the driver serves it."""
    oldest = OLDEST_DRIVER.get(int(cuda.partition(".")[0]))
    if oldest is None or int(driver.partition(".")[0]) >= oldest:
        return None
    older = [version for version, needed in OLDEST_DRIVER.items() if needed <= int(driver.partition(".")[0])]
    other = f", or install a build of torch for CUDA {older[-1]}" if older else ""
    return f"driver {driver}, but torch is built for CUDA {cuda}: update it to {oldest} or newer{other}"


def _nccl(gpus: bool) -> Finding:
    """NCCL's version, and that the networks named for the collectives exist here."""
    import torch

    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = os.environ.get(name, "")
        prefixes = tuple(filter(None, value.lstrip("=").split(",")))
        if prefixes and value[0] != "^" and not any(there.startswith(prefixes) for there in psutil.net_if_addrs()):
            there = ", ".join(psutil.net_if_addrs())
            return Finding("nccl", False, f"{name}={value}, but here are {there}: correct it")
    if not gpus or not torch.cuda.is_available():
        return Finding("nccl", True, "not needed: ranks on CPUs use gloo")
    return Finding("nccl", True, ".".join(map(str, torch.cuda.nccl.version())))


def fabric_findings(folder: Path, verbs: str = "libibverbs.so.1", plugin: str = "libnccl-net.so") -> Iterator[Finding]:
    """Yield whether the libraries load by which NCCL uses the adapters in `folder`.

    NCCL takes TCP without a word if they do not.
    """
    adapters = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not adapters:
        return
    libraries = {verbs: "apt-get install libibverbs1 ibverbs-providers"}
    if any(name.startswith(("rdmap", "efa")) for name in adapters):
        libraries[plugin] = "make image-cuda EFA=VERSION, or Amazon's EFA installer"
    for library, remedy in libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            text = f"{', '.join(adapters)}, but {library} does not load, and NCCL will take TCP: {remedy}"
            yield Finding("fabric", False, text)
            return
    yield Finding("fabric", True, ", ".join(adapters))
