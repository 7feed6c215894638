"""`--from OLD_ROOT`: a new root takes over what a stage reads, so that another model learns on the same data.

Files are hard links where the storage has them (they are never changed in place), copies elsewhere; what grows in
place is always copied. Plans and receipts come along: the stages that made them pass over them in the new root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from data_specs import storage
from data_specs.digest import differences
from data_specs.manifest import read_manifest
from data_specs.root import read_spec
from data_specs.spec import Spec
from data_specs.verify import find_shard_sets
from pipeline.stages import Stage, find

NOT_TAKEN = ("lease/", "wandb/", "step_", "samples/", "latest")  # of a folder: what only its own run needs
APPENDED = (".jsonl",)


def inherit(stage: Stage, spec: Spec, root: str, old: str) -> Iterator[str]:
    """Give the new root what a stage reads in the old one; yield a line for each folder.

    What is there already stays, so that an interrupted call goes on.

    Raises:
        ValueError: the old root has nothing of it, or unfinished sets, or codes of another shape; or the new root
            holds something else. Nothing is written then.
    """
    _refuse_other_shape(stage, spec, old)
    folders = [name for name in folders_of(stage) if next(iter(storage.list_files(storage.join(old, name))), None)]
    if not folders:
        raise ValueError(f"--from {old}: holds nothing that `dnd {stage.name}` reads; name a root that does")
    for folder in folders:
        for set_uri in find_shard_sets(storage.join(old, folder)):
            read_manifest(storage.join(set_uri, "manifest.json"))  # raises where the set is unfinished
        _refuse_other(storage.join(old, folder), storage.join(root, folder))
    for folder in folders:
        number = sum(1 for _ in _copy_missing(storage.join(old, folder), storage.join(root, folder)))
        yield f"{folder}: {number} files from {old}" if number else f"{folder}: there already"


def folders_of(stage: Stage) -> list[str]:
    """Return the folders under a root that a stage reads, those of what they were made from first."""
    found = dict[str, None]()
    for name in stage.reads:
        if (before := find(name)) and before.in_run:
            found |= dict.fromkeys([*folders_of(before), before.makes.partition("/")[0]])
    return list(found)


def _refuse_other_shape(stage: Stage, spec: Spec, old: str) -> None:
    """Refuse an old root whose shape is not the spec's.

    Where only images are taken, which have no codes yet, only their size must agree.

    Raises:
        ValueError: the shapes or sizes differ.
    """
    taken = {"image_size"} if folders_of(stage) == ["images"] else None
    was, now = (one.shape.model_dump(mode="json", include=taken) for one in (read_spec(None, old), spec))
    if changes := differences(was, now):
        said = "; ".join(f"shape.{key} is {there} there and {here} in the spec" for key, there, here in changes)
        raise ValueError(f"--from {old}: {said}: use its shape, or make images and codes anew, without --from")


def _refuse_other(old: str, new: str) -> None:
    """Plans and identities that both folders have must be the same."""
    for file in storage.list_files(new):
        name = file.uri.removeprefix(new + "/")
        if name.endswith(("plan.jsonl", "stage.json")):
            theirs = storage.join(old, name)
            if not storage.exists(theirs) or storage.read_bytes(theirs) != storage.read_bytes(file.uri):
                raise ValueError(f"{file.uri}: the root holds something else already; give a new --root with --from")


def _copy_missing(old: str, new: str) -> Iterator[str]:
    """Link or copy every file of a folder that the other lacks; yield their names."""
    for file in storage.list_files(old):
        name = file.uri.removeprefix(old + "/")
        target = storage.join(new, name)
        if not name.startswith(NOT_TAKEN) and not storage.exists(target):
            if name.endswith(APPENDED) or not _is_linked(file.uri, target):
                storage.create(target, storage.local_copy(file.uri))
            yield name


def _is_linked(path: str, target: str) -> bool:
    """Whether the target is now a hard link to the file; not so across devices, nor on S3."""
    if storage.is_remote(path) or storage.is_remote(target):
        return False
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        return False
    return True
