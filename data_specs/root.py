"""A root's spec: what a command runs by, and what each stage was made with.

ROOT/spec.yaml is the record of the run. A stage writes its sections there once it has accepted them, and the whole spec
that it was made with as spec.yaml into its own folder; a command that is refused writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from data_specs import local_files, storage
from data_specs.code_version import record_code
from data_specs.spec import Spec, load_spec, parse_spec

NAME = "spec.yaml"
REFUSED = (ValueError, ImportError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@contextmanager
def restored_on_refusal(folder: str) -> Iterator[None]:
    """Take away what the block has made in a folder, and the folder, where it is refused; what was there stays.

    An end that another try may mend (a network or a disk that fails, a signal) takes nothing away.
    """
    there = {file.uri for file in storage.list_files(folder)}
    with local_files.no_empty_folders_left(folder):
        try:
            yield
        except REFUSED:
            for file in storage.list_files(folder):
                if file.uri not in there:
                    storage.delete(file.uri)
            raise


def read_spec(spec: str | None, root: str | None = None, overrides: Sequence[str] = ()) -> Spec:
    """Read the spec of a command; nothing is written.

    Args:
        spec: a preset, a YAML file or the s3:// address of one; None takes the root's own record.
        overrides: `a.b=c`, laid over what was read.

    Raises:
        ValueError: there is no such spec, or it cannot work.
    """
    if spec is not None:
        return load_spec(storage.local_copy(spec) if storage.is_remote(spec) else spec, overrides)
    assert root is not None, "a command without SPEC has a root"
    uri = storage.join(root, NAME)
    try:
        return parse_spec(storage.read_bytes(uri), uri, overrides)
    except FileNotFoundError:
        raise ValueError(
            f"{uri}: there is none yet: name a SPEC, a preset (`dnd presets`) or a YAML file; or a run's root"
        ) from None


def name_under(root: str, uri: str) -> str:
    """Return the name of what lies under a root, such as `images/train`, from its address."""
    return uri.removeprefix(root.rstrip("/") + "/")


def spec_of(root: str, folder: str) -> Spec:
    """Return the spec by which ROOT/FOLDER was made; the root's record where the folder keeps none.

    Raises:
        ValueError: there is neither.
    """
    kept = storage.join(root, folder, NAME)
    return read_spec(None, storage.join(root, folder) if storage.exists(kept) else root)


def spec_of_samples(root: str, uri: str) -> Spec | None:
    """Return the spec by which the samples at an address were drawn; None where they are not this root's."""
    folder = storage.join(root, "samples") + "/"
    if not uri.startswith(folder):
        return None
    return spec_of(root, f"samples/{uri.removeprefix(folder).partition('/')[0]}")


def record_spec(spec: Spec, root: str, folder: str, keys: Sequence[str]) -> None:
    """Keep the spec of a stage that has accepted it: whole in ROOT/FOLDER, its `keys` in the record of the run.

    ROOT/code.json says by which code it began.

    Args:
        keys: sections and keys (`shape.image_size`) of the spec that the stage answers for; none of them leaves the
            record of the run as it is.
    """
    _write(storage.join(root, folder, NAME), spec)
    record_code(root, began=folder)
    if keys:
        _write(storage.join(root, NAME), _with_keys(storage.join(root, NAME), spec, keys))


def _with_keys(uri: str, spec: Spec, keys: Sequence[str]) -> Spec:
    """Return the record with these keys, and the sections that it lacks, from `spec`.

    `spec` takes its place where it cannot be read, or where the two do not go together.
    """
    if not storage.exists(uri):
        return spec
    data = storage.read_bytes(uri)
    try:
        record = parse_spec(data, uri)
    except ValueError:
        return spec
    for key in ("name", *keys):
        section, _, inner = key.partition(".")
        value = getattr(spec, section)
        if inner:
            record = record.changed(section, **{inner: getattr(value, inner)})
        else:
            record = record.model_copy(update={section: value})
    try:
        return Spec.model_validate(spec.tree() | record.tree())
    except ValueError:  # what was kept does not go with this spec: nothing was made by it
        return spec


def _write(uri: str, spec: Spec) -> None:
    text = spec.to_yaml()
    if not storage.exists(uri) or storage.read_bytes(uri) != text.encode():
        storage.write_text(uri, text)
