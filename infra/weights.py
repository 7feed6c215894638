"""Weights and reference batches that evaluation takes, by name: what each is, where it lies, how it is known.

`dnd pretrained` lists them, `dnd pretrained NAME` fetches one into the cache; where evaluation takes a file, a name of
this table, hf://owner/repo/path or https://… is fetched as well.
"""

from __future__ import annotations

from typing import NamedTuple

from data_specs import storage
from data_specs.digest import file_digest
from data_specs.text import one_line
from infra.hub import HUB, fetch


class Weights(NamedTuple):
    """A file or folder that others published; `sha256` is empty where none was published with it."""

    about: str
    address: str
    size: str
    sha256: str = ""
    reference: str = ""  # of a reference batch, what it holds, as `--kind` says it


ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
REGISTRY = {
    "inception": Weights(
        "Inception of 2015-12-05 as PyTorch, for --extractor inception",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "91 MB",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "VIRTUAL_imagenet256": Weights(
        "ADM's reference batch of ImageNet at 256 px, for --reference",
        f"{ADM}/256/VIRTUAL_imagenet256_labeled.npz",
        "2 GB",
        reference="training",
    ),
    "VIRTUAL_imagenet512": Weights(
        "ADM's reference batch of ImageNet at 512 px, for --reference",
        f"{ADM}/512/VIRTUAL_imagenet512.npz",
        "",
        reference="training",
    ),
    "Qwen2-VL-7B": Weights("reads pictures, for --engine qwen2-vl:", f"{HUB}Qwen/Qwen2-VL-7B-Instruct", "17 GB"),
    "Qwen2-VL-72B": Weights(
        "reads pictures as the paper's rOCR was read, for --engine qwen2-vl:",
        f"{HUB}Qwen/Qwen2-VL-72B-Instruct",
        "147 GB",
    ),
}


def fetch_weights(address: str) -> str:
    """Return a local path of what an address names: a name of the registry, hf://, https://; any other as it is.

    Raises:
        ValueError: it is out of reach, with the command to run elsewhere; or it is not the published file.
    """
    known = REGISTRY.get(address)
    where = known.address if known else address
    if where.startswith(HUB):
        return str(fetch(where).path)
    if not where.startswith(("https://", "http://")):
        return where
    try:
        path = storage.local_copy(where)
    except OSError as error:
        reason = one_line(error, 200)
        raise ValueError(
            f"{address}: out of reach ({reason}): on a machine that reaches it run `curl -LO {where}`, bring the file "
            "here and give its path"
        ) from None
    if known and known.sha256 and (found := file_digest(path)) != known.sha256:
        told = f"sha256 {found[:8]}…, not {known.sha256[:8]}…"
        raise ValueError(f"{where}: is not what was published ({told}): remove {path}")
    return str(path)


def list_weights() -> list[str]:
    """Return a line for each entry of the registry."""
    return [f"{name:20} {one.size:>7}  {one.about}\n{'':29} {one.address}" for name, one in REGISTRY.items()]
