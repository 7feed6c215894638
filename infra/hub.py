"""The Hugging Face hub: what an address names is brought here through the hub's cache, and a root is published.

An address is `hf://owner/repo[/path][@revision]` (HF_ENDPOINT names a mirror), a folder or a file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_specs import storage
from data_specs.text import one_line

HUB = "hf://"
PUBLISHED = (
    *("spec.yaml", "tokenizer/tokenizer.*", "transformer/transformer.*", "transformer/ema.safetensors"),
    *("tokenizer/metrics.jsonl", "transformer/metrics.jsonl", "evaluation/*", "report/*", "samples/*/grid.png"),
)
SHARDS = ("images/*", "codes/*")


Origin = dict[str, str | int]  # where a file came from: address, commit, name, size, digest


class Fetched(NamedTuple):
    """A local file or folder, and what is known of where it came from."""

    path: Path
    origin: Origin


def fetch(address: str, wanted: Sequence[str] = ()) -> Fetched:
    """Bring what an address names onto this machine.

    Args:
        wanted: paths in the repository that the caller will fetch, for the command to run elsewhere; default: this one.

    Raises:
        ValueError: there is nothing there, or the hub is out of reach: with the command to run elsewhere.
    """
    if not address.startswith(HUB):
        path = Path(address)
        if not path.exists():
            raise ValueError(f"{address}: no such file or folder")
        return Fetched(path, {"address": str(path.absolute())})
    repo, path_in_repo, revision = _split(address)
    snapshot = _download(address, repo, path_in_repo, revision, wanted)
    path = snapshot / path_in_repo if path_in_repo else snapshot
    if not path.exists():
        raise ValueError(f"{address}: there is no {path_in_repo} in {repo} at {snapshot.name}")
    return Fetched(path, {"address": address, "commit": snapshot.name})


def _download(address: str, repo: str, path_in_repo: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """Bring a path of a repository into the hub's cache; return the folder of the repository at this commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    )

    patterns = [path_in_repo, f"{path_in_repo}/*"] if path_in_repo else None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, IncompleteSnapshotError):
        include = "".join(f" --include '{path}/*'" for path in (wanted or [path_in_repo]) if path)
        raise ValueError(
            f"{address}: the hub is out of reach: on a machine that reaches it run `hf download {repo}{include} "
            "--local-dir FOLDER`, bring FOLDER here and give it as --from FOLDER; a mirror is named by HF_ENDPOINT"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ValueError(f"{address}: {one_line(error, 300)}") from None


def _split(address: str) -> tuple[str, str, str | None]:
    """(owner/repo, path in it, revision or None)."""
    where, _, revision = address.removeprefix(HUB).partition("@")
    owner, repo, path = [*where.strip("/").split("/", 2), "", ""][:3]
    if not owner or not repo:
        raise ValueError(f"{address}: write hf://owner/repo or hf://owner/repo/path")
    return f"{owner}/{repo}", path, revision or None


def downloaded_commit(path: Path) -> str | None:
    """Return the commit of a file that `hf download` fetched, or None where it is not known.

    It is noted below the --local-dir, or is the name of a folder of the hub's cache.
    """
    for folder in path.absolute().parents:
        metadata = folder / ".cache/huggingface/download" / f"{path.absolute().relative_to(folder)}.metadata"
        if metadata.is_file():
            return metadata.read_text("utf-8").partition("\n")[0]
        if folder.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", folder.name):
            return folder.name
    return None


def push(root: str, repo: str, shards: bool, private: bool) -> str:
    """Publish a root on the hub: tokenizer, transformer, figures and pictures; with `shards` the data as well.

    Returns:
        The address under which `dnd pretrained` finds it.

    Raises:
        ValueError: the root holds nothing to publish, or the hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = storage.local_folder(root)
    if shards and any(storage.exists(storage.join(root, "images", name, "plan.jsonl")) for name in ("train", "val")):
        from infra.card import write_card

        write_card(root)
    patterns = [*PUBLISHED, *(SHARDS if shards else ())]
    if not any(next(folder.glob(pattern), None) for pattern in patterns):
        raise ValueError(f"{root}: holds neither models nor shards to publish")
    hub = HfApi()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=patterns, commit_message="dnd push")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{repo}: {one_line(error, 300)}") from None
    return f"{HUB}{repo}@{done.oid}"
