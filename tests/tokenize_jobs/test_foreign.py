"""Checkpoints of others: what stands beside the weights is read past, nothing runs, and no memory is asked for."""

from __future__ import annotations

import datetime
import gzip
import io
import pickle
import random
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenize_jobs.foreign import _record_size, safe_torch_load
from tokenize_jobs.weights import unwrapped


def test_random_states_dates_and_paths_beside_the_weights_are_read_past(tmp_path: Path) -> None:
    weights = {"w": torch.arange(6.0).view(2, 3)[:, 1:], "p": torch.nn.Parameter(torch.ones(2))}
    beside = {
        "rng": {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        "when": datetime.datetime.now(datetime.UTC),
        "took": datetime.timedelta(hours=3),
        "where": Path("/data/run"),
        "generator": np.random.default_rng(0),
        "table": np.ones((2, 2)),
        "best": np.float32(0.5),
        "dtype": torch.bfloat16,
        "version": torch.__version__,
    }
    for legacy in (False, True):
        torch.save({"model": weights, **beside}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
        found = safe_torch_load(tmp_path / "a.pt")
        assert torch.equal(found["model"]["w"], weights["w"]) and torch.equal(found["model"]["p"], weights["p"])
        assert found["best"] == 0.5 and found["dtype"] == torch.bfloat16
        assert torch.equal(found["rng"]["torch"], beside["rng"]["torch"])  # type: ignore[index]


# ---- bombs ---------------------------------------------------------------------------------------------------------
def zipped(tree: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A torch.save file around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in {"data.pkl": tree, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"a/{name}", data)
    return buffer.getvalue()


def calling(name: bytes, argument: bytes) -> bytes:
    module, _, function = name.rpartition(b".")
    return b"\x80\x02c" + module + b"\n" + function + b"\n" + argument + b"\x85R."


def legacy_storage(numel: int) -> bytes:
    """A file of the old format whose one storage claims to be large."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue().replace(b"K\x01Nt", b"J" + numel.to_bytes(4, "little") + b"Nt")


def two_directories() -> bytes:
    """A zip whose end tells Python of a stored member, and torch, which heeds the offset, of a compressed one."""
    compressed = zipped(pickle.dumps(bytes(2**28)), zipfile.ZIP_DEFLATED)
    stored = zipped(b"N.")
    first, second = (content.rindex(b"PK\x05\x06") for content in (compressed, stored))
    return compressed[:first] + stored[:second] + compressed[first:]


def compressed_tar() -> bytes:
    """A tar whose first header announces 2**28 bytes about the next member, and gives them, all packed to 260 KB."""
    header = tarfile.TarInfo("a")
    header.type, header.size = tarfile.XHDTYPE, 2**28
    return gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(2**28), 1)


def stored_again(content: bytes) -> bytes:
    """The same members, none of them compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as stored:
        for name in archive.namelist():
            stored.writestr(name, archive.read(name))
    return buffer.getvalue()


TEXT = b"X" + (2**18).to_bytes(4, "little") + bytes(2**18)
ENCODED = b"c_codecs\nencode\nq\x00" + TEXT + b"\x85q\x01(" + b"h\x00h\x01R" * 1000 + b"t."
THREE_GB = b"J" + (3 * 2**30 // 2).to_bytes(4, "little")
BOMBS: dict[str, Callable[[], bytes]] = {
    "bytearray by call": lambda: zipped(calling(b"builtins.bytearray", THREE_GB)),
    "bytes by call": lambda: zipped(calling(b"builtins.bytes", THREE_GB)),
    "bytearray by its opcode": lambda: zipped(b"\x80\x05\x96" + (3 * 2**30).to_bytes(8, "little") + b"."),
    "memo index": lambda: zipped(b"\x80\x02Nr\xff\xff\xff\x7f."),
    "array of numpy": lambda: zipped(calling(b"numpy.zeros", THREE_GB)),
    "compressed tree": lambda: zipped(pickle.dumps({"x": bytes(2**28)}), zipfile.ZIP_DEFLATED),
    "storage of the old format": lambda: legacy_storage(3 * 2**28),
    "two lists of members": two_directories,
    "compressed tar": compressed_tar,
    "one text encoded again and again": lambda: zipped(b"\x80\x02" + ENCODED),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_small_files_ask_for_no_memory(tmp_path: Path, bomb: Callable[[], bytes]) -> None:
    """The peak of this process, which the kernel counts, grows by less than 64 MB."""
    (tmp_path / "bomb.pt").write_bytes(bomb())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        safe_torch_load(tmp_path / "bomb.pt")
    except ValueError as error:
        assert "bomb.pt" in str(error) and "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("name", [b"os.system", b"posix.system", b"builtins.eval", b"builtins.getattr", b"torch.load"])
def test_what_would_run_something_is_refused_by_name(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(zipped(calling(name, b"U\x04true")))
    with pytest.raises(
        ValueError, match=rf"a\.pt: holds an object of {name.decode()}, which is not plain data: refused"
    ):
        safe_torch_load(tmp_path / "a.pt")


class Program(torch.nn.Module):
    """Writes a file as soon as it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save([1], self.path)


def test_a_torchscript_program_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.jit.script(Program(str(tmp_path / "owned"))).save(tmp_path / "program.pt")
    (tmp_path / "a.pt").write_bytes(stored_again((tmp_path / "program.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"a\.pt: is a program \(TorchScript\), not weights: refused$"):
        safe_torch_load(tmp_path / "a.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", [b"argparse.Namespace", b"numpy.any", b"torch._utils._rebuild_tensor"])
def test_a_file_changes_no_type_or_function_of_this_process(tmp_path: Path, name: bytes) -> None:
    module, _, thing = name.rpartition(b".")
    state = pickle.dumps((None, {"changed": 1}), 2)[2:-1]
    (tmp_path / "a.pt").write_bytes(zipped(b"\x80\x02c" + module + b"\n" + thing + b"\n" + state + b"b."))
    assert not hasattr(safe_torch_load(tmp_path / "a.pt"), "changed")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(300)}, buffer)
    content = buffer.getvalue().replace(b"M,\x01\x85", b"M\xff\xff\x85")  # the size, not the storage's
    assert content != buffer.getvalue()
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt"):
        safe_torch_load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("module._orig_mod.layers.0.w", "layers.0.w"),
        ("layers.0._checkpoint_wrapped_module.attention.w", "layers.0.attention.w"),
        ("encoder.module.conv._orig_mod.weight", "encoder.conv.weight"),
    ],
)
def test_wrappers_anywhere_in_a_name_are_left_out(name: str, plain: str) -> None:
    assert unwrapped(name) == plain


def test_torch_2_6_tells_the_size_of_a_member_by_reading_it(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(100)}, tmp_path / "a.pt")
    records = torch._C.PyTorchFileReader(str(tmp_path / "a.pt"))
    before = SimpleNamespace(get_record=records.get_record)
    sizes = [(_record_size(before, name), _record_size(records, name)) for name in records.get_all_records()]  # type: ignore[arg-type]
    assert (400, 400) in sizes and all(read == told for read, told in sizes)
