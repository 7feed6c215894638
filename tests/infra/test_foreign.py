"""Records from somebody else: nothing outside their set is read or deleted, and one line names the file."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from socket import gethostname
from typing import Any

import pyarrow.parquet as pq
import pytest
from sets import render_here, text_spec, write_texts

from data_specs import load_spec, open_shards
from data_specs.reader import decode_fields
from data_specs.receipts import discard, read_receipt
from data_specs.records import Legibility, RangeUnit, Removed, unit_line
from data_specs.root import read_spec
from data_specs.units import read_plan
from data_specs.verify import clean_litter, verify_set
from infra.card import write_card
from infra.commands.data import _damaged_records
from infra.compare import compare_roots
from infra.look import look
from infra.report.report import write_report
from infra.status import status_lines
from infra.view.sets import class_names
from pipeline.duplicates import near_duplicates
from pipeline.removal import check_removed, remove
from tokenize_jobs.decode import write_npz
from tokenize_jobs.rqvae import RQVAEConfig
from tokenize_jobs.weights import read_config as read_tokenizer
from train.evaluation.results import read_result, write_result
from train.loader import CodeSet
from train.model import TransformerConfig
from train.weights import read_config as read_transformer


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered set of eight documents, and a file that no record may touch."""
    folder = tmp_path_factory.mktemp("foreign")
    write_texts(folder / "texts/a.jsonl", [f"a{number}" for number in range(8)])
    render_here(text_spec(folder / "texts", "render.val_share=0.1"), folder / "run")
    return folder / "run"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "a/run")
    (tmp_path / "victim").write_text("kept")
    return tmp_path / "a/run"


def change(path: Path, changes: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(path.read_text())
    changes(tree)
    path.write_text(json.dumps(tree))


def readers(root: Path) -> list[Callable[[], object]]:
    """What works by the manifest of images/train."""
    train = str(root / "images/train")
    return [
        lambda: open_shards(train),
        lambda: CodeSet(train, 0, (1, 1, 1)),
        lambda: write_card(str(root)),
    ]


PART = {"nshards": 1, "nsamples": 1, "sha256": "0" * 64}
BAD_MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "part": lambda tree: tree.update(parts=[PART | {"url": "/etc/passwd"}]),
    "shard": lambda tree: tree["shardlist"][0].update(url="../../../victim"),
    "replaces": lambda tree: tree["shardlist"][0].update(replaces=["../../../victim"]),
    "type": lambda tree: tree["shardlist"][0].update(nsamples="1"),
    "nan": lambda tree: tree["totals"].update(bytes=float("nan")),
    "negative": lambda tree: tree["totals"].update(written=-1),
    "sum": lambda tree: tree["totals"].update(written=10**6),
    "account": lambda tree: tree["totals"].update(offered=tree["totals"]["offered"] + 1),
    "reasons": lambda tree: tree.update(rejects={"encrypted": 1}),
    "reason": lambda tree: tree.update(rejects={"<script>": 1}),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_manifest_that_says_too_much_is_one_line_everywhere(root: Path, tmp_path: Path, name: str) -> None:
    change(root / "images/train/manifest.json", BAD_MANIFESTS[name])
    for reader in readers(root):
        with pytest.raises(ValueError, match=r"^[^\n]*images/train/manifest\.json: not a valid manifest [^\n]*$"):
            reader()
    told = [line for line in status_lines(str(root)) if "images/train/manifest.json: not a valid manifest" in line]
    assert len(told) == 1 and "\n" not in told[0]
    [fault] = verify_set(str(root / "images/train"))
    assert "images/train/manifest.json: not a valid manifest" in fault
    clean_litter(str(root / "images/train"))
    list(remove(str(root), ["a0"], []))
    assert (tmp_path / "victim").read_text() == "kept" and list(verify_set(str(root / "images/train"))) == []


@pytest.mark.parametrize("bomb", [b"[" * 10**6, b'{"a":' * 10**6, b"\xff", b"", b"NaN", b"9" * 10**5])
def test_a_file_that_is_no_record_is_one_line(root: Path, bomb: bytes) -> None:
    (root / "images/train/manifest.json").write_bytes(bomb)
    for reader in readers(root):
        with pytest.raises(ValueError, match=r"manifest\.json: not a valid manifest"):
            reader()
    assert any("manifest.json: not a valid manifest" in line for line in status_lines(str(root)))
    for name, record in (("plan.jsonl", "planheader"), ("000000.json", "receipt")):
        before = (root / "images/train" / name).read_bytes()
        (root / "images/train" / name).write_bytes(bomb)
        assert any(f"{name}: not a valid {record}" in fault for fault in verify_set(str(root / "images/train")))
        (root / "images/train" / name).write_bytes(before)
    (root / "images/train/manifest.json").unlink()
    (root / "images/train/progress.json").write_bytes(bomb)
    assert any("progress.json: not a valid jobstate" in line for line in status_lines(str(root)))


def test_a_receipt_deletes_nothing_outside_its_set(root: Path, tmp_path: Path) -> None:
    receipt = root / "images/train/000000.json"
    outside = os.path.relpath(tmp_path / "victim", root / "images/train")
    [own] = [path.name for path in (root / "images/train").glob("000000-*.tar")]
    for name in (outside, str(tmp_path / "victim"), "000001-00000000.tar", own):
        change(receipt, lambda tree: tree.update(replaces=[name]))  # noqa: B023 (called at once)
        assert any("000000.json: not a valid receipt" in fault for fault in verify_set(str(root / "images/train")))
        with pytest.raises(ValueError, match=r"000000\.json: not a valid receipt"):
            list(remove(str(root), [f"a{number}" for number in range(8)], []))
        with pytest.raises(ValueError, match=r"000000\.json: not a valid receipt"):
            look(str(root), "images/train", 0)
        assert clean_litter(str(root / "images/train")) == []  # its shard may be good
    assert not (root / "images/removed").exists() and (root / "images/train" / own).exists()
    assert (tmp_path / "victim").read_text() == "kept"


def test_a_plan_of_another_kind_of_set_is_one_line_everywhere(root: Path) -> None:
    plan, one = (
        root / "images/train/plan.jsonl",
        r"^[^\n]*images/train/plan\.jsonl: holds units of the kind 'range'[^\n]*$",
    )
    (root / "images/removed").mkdir()
    (root / "images/removed/old.json").write_bytes(Removed(ids=("x",)).to_json())
    header, *units = plan.read_bytes().splitlines(keepends=True)
    plan.write_bytes(header + b"".join(unit_line(RangeUnit(unit=n, first=n, count=1)) for n in range(len(units))))
    with pytest.raises(ValueError, match=one):
        list(remove(str(root), ["a0"], []))
    [fault] = check_removed(str(root / "images/train"))
    assert re.match(one, fault)
    plan.unlink()
    with pytest.raises(ValueError, match=r"images/train: plan\.jsonl is lost"):
        write_card(str(root))


def test_a_receipt_under_the_name_of_another_unit_counts_for_none(root: Path) -> None:
    train = root / "images/train"
    (train / "000009.json").write_bytes((train / "000000.json").read_bytes())
    with pytest.raises(ValueError, match=r"000009\.json: says it is unit 0"):
        read_receipt(str(train / "000009.json"), json.loads((train / "000000.json").read_text())["digest"])
    assert any("000009.json: says it is unit 0" in fault for fault in verify_set(str(train)))
    discard(str(train), 9)
    assert list(train.glob("000000-*.tar"))


def test_a_plan_of_fewer_units_than_it_says_is_one_line(root: Path) -> None:
    path = root / "images/train/plan.jsonl"
    head, _, rest = path.read_bytes().partition(b"\n")
    tree = json.loads(head) | {"num_units": 99}
    path.write_bytes(json.dumps(tree).encode() + b"\n" + rest)
    plan = read_plan(str(root / "images/train"))
    assert plan is not None
    with pytest.raises(ValueError, match=r"plan\.jsonl: holds \d+ units, its first line says 99"):
        list(plan.units())
    assert any("plan.jsonl: holds" in fault for fault in verify_set(str(root / "images/train")))


def test_a_unit_whose_shard_is_cut_is_named_by_what_would_have_taken_something_out(root: Path) -> None:
    [tar] = (root / "images/train").glob("000000-*.tar")
    tar.write_bytes(tar.read_bytes()[:-512])
    for reader in (lambda: list(remove(str(root), ["a0"], [])), lambda: look(str(root), "images/train", 0)):
        with pytest.raises(ValueError, match=rf"{tar.name}: is not there with the size that its receipt names"):
            reader()


def test_a_discarded_unit_of_a_damaged_receipt_leaves_no_shard(root: Path) -> None:
    train = root / "images/train"
    (train / "000000.json").write_text("[]")
    discard(str(train), 0)
    assert not list(train.glob("000000*")) and list(train.glob("000001-*.tar"))


BAD_FIELDS = {
    "json": [
        b"[" * 10**6,
        b'{"a": NaN}',
        b'{"words": ["a"], "boxes": [], "clipped": []}',
        b'{"text": 3}',
        b"\xff",
        b"[]",
    ],
    "cls": [b"x", b"", b"1.5", b"-1"],
    "png": [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)],
    "codes.npy": [b"", b"\x93NUMPY\x01\x00"],
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_field_that_is_none_is_one_line_that_names_its_sample(field: str) -> None:
    whole = {"json": b"{}", "cls": b"0"}
    for data in BAD_FIELDS[field]:
        with pytest.raises(ValueError, match=r"^s3://b/000000-0\.tar: a-1: [^\n]*$"):
            decode_fields("a-1", whole | {field: data}, "s3://b/000000-0.tar")
    if field in whole:
        with pytest.raises(ValueError, match=f"a-1: has no field {field}"):
            decode_fields("a-1", {name: data for name, data in whole.items() if name != field}, "s3://b/000000-0.tar")


def test_a_table_of_another_number_of_rows_is_one_line(root: Path) -> None:
    [table] = (root / "images/train").glob("000000-*.parquet")
    pq.write_table(pq.read_table(table).slice(0, 0), table)
    for reader in (lambda: list(near_duplicates(str(root), 3)), lambda: list(remove(str(root), ["a0"], []))):
        with pytest.raises(ValueError, match=r"\.parquet: its bytes are not those .* run `dnd verify`"):
            reader()


def test_a_lease_of_impossible_times_is_one_line(root: Path) -> None:
    said = {"host": gethostname(), "pid": 1 << 40, "pid_space": "", "command": "x", "since": 1e300, "beat": 1e300}
    (root / "images/lease").mkdir(exist_ok=True)
    (root / "images/lease/000001.json").write_text(json.dumps(said))
    assert any("000001.json: not a valid leaseholder" in line for line in status_lines(str(root)))


@pytest.mark.parametrize("text", ["[" * 10**4, "name: \x00", "a: \xff", "a: " + "9" * 5000])
def test_a_spec_that_is_no_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.yaml").write_bytes(text.encode("latin-1"))
    for read in (lambda: read_spec(None, str(tmp_path)), lambda: load_spec(tmp_path / "spec.yaml")):
        with pytest.raises(ValueError, match=r"^[^\n]*spec\.yaml: not YAML: [^\n]*$"):
            read()
    with pytest.raises(ValueError, match=r"--set name=.*not YAML"):
        load_spec("demo", ["name=" + "[" * 10**4])


def test_classes_have_their_names_in_the_studio(root: Path) -> None:
    (root / "images/classes.json").write_text('{"0": "cat", "1": "dog"}')
    assert class_names(str(root)) == [("cat", 0), ("dog", 1)]
    (root / "images/classes.json").write_text('["cat", ' + "[" * 10**5)
    with pytest.raises(ValueError, match=r"classes\.json: write a list of names"):
        class_names(str(root))


RQVAE_CONFIG = RQVAEConfig(image_size=16, grid=4, depth=2, codebook_size=32, ch=32, ch_mult=(1, 1, 1))
DND_CONFIG = TransformerConfig(2, 2, 16, codebook_size=32, grid=(4, 4), head_layers=(0, 1))


@pytest.mark.parametrize(("config", "read"), [(RQVAE_CONFIG, read_tokenizer), (DND_CONFIG, read_transformer)])
@pytest.mark.parametrize(
    "change",
    [{"depth": "2"}, {"codebook_size": 0}, {"codebook_size": float("nan")}, {"grid": "ab"}, {"grid": [0, 4]}, {"x": 1}],
)
def test_a_model_that_is_described_wrongly_is_one_line(
    tmp_path: Path, config: Any, read: Callable[[str], object], change: dict[str, Any]
) -> None:
    name = "tokenizer.json" if config is RQVAE_CONFIG else "transformer.json"
    for text in (json.dumps(asdict(config) | change), "[" * 10**5, "[]", "\xff"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"^[^\n]*{name}: no readable [^\n]*$"):
            read(str(tmp_path))
    (tmp_path / name).write_text(json.dumps(asdict(config)))
    assert read(str(tmp_path)) == config


RESULTS = Path(__file__).parents[1] / "train/evaluation/results"
NO_JSON_OBJECT = ["[" * 10**5, "[]", '{"a": NaN}', "", "\xff"]
OF_ANOTHER_SHAPE = ['{"sweep": 3}', '{"depths": []}', '{"real": 1, "generated": 2}', '{"figures": 3}', '{"command": 3}']


def test_a_result_of_another_shape_is_one_line_in_the_report(root: Path) -> None:
    named = [("x", text) for text in NO_JSON_OBJECT + OF_ANOTHER_SHAPE]
    whole = json.loads((RESULTS / "summary.json").read_text())
    without_words = json.dumps(whole | {"words": {"aim": 0.6}})  # and no word of why
    summaries = [("summary", text) for text in ('{"words": 3}', '{"a": 1}', '{"bits_per_code": NaN}', without_words)]
    for name, text in [*named, *summaries]:
        path = root / f"evaluation/{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
        for reader in (lambda: write_report(str(root)), lambda: compare_roots(str(root), str(root))):
            with pytest.raises(
                ValueError, match=rf"^[^\n]*evaluation/{name}\.json: not a (result of|valid summary) [^\n]*$"
            ):
                reader()
        assert not (root / "report").exists()
        path.unlink()
    assert not (root / "report").exists()


RECORDS = (
    *("code.json", "spec.yaml", "images/spec.yaml", "tokenizer/stage.json", "tokenizer/tokenizer.json"),
    *("transformer/order.json", "transformer/transformer.json", "evaluation/x.json", "evaluation/summary.json"),
    "tokenizer/metrics.jsonl",
)


def test_verify_reads_every_record(root: Path) -> None:
    assert list(_damaged_records(str(root))) == []
    for name in (*RECORDS, "inputs/spec.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("[NaN]")
    faults = list(_damaged_records(str(root)))
    assert all("\n" not in fault for fault in faults)
    assert sorted(fault.partition(":")[0] for fault in faults) == sorted(f"{root}/{name}" for name in RECORDS)


def test_verify_reads_samples_npz_to_its_end(root: Path, tmp_path: Path) -> None:
    """A bit of the name in its header, of a pixel, of the checksum, of the way it is packed; too few pictures."""
    items = open_shards(str(root / "images/train"))
    npz = root / "samples.npz"
    shutil.copytree(root / "images/train", root / "images", dirs_exist_ok=True)
    write_npz(items, str(npz))
    assert list(_damaged_records(str(root))) == []
    data = npz.read_bytes()
    directory = data.rindex(b"PK\x01\x02")
    for position in (30, 300, directory + 10, directory + 16):
        npz.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        [fault] = _damaged_records(str(root))
        assert fault.startswith(f"{npz}: ") and "\n" not in fault
    write_npz(items[:-1], str(npz))
    [fault] = _damaged_records(str(root))
    assert fault.startswith(f"{npz}: holds {len(items) - 1} pictures")


def test_a_number_that_is_not_finite_is_written_as_none(tmp_path: Path) -> None:
    uri = str(tmp_path / "evaluation/x.json")
    made = read_result(str(RESULTS / "legibility.json"))
    assert isinstance(made, Legibility)
    figures = {"ratio": float("nan"), "ratio_interval": (1.0, float("inf"))}
    write_result(uri, Legibility(**dict(made) | figures))
    assert read_result(uri).tree() | {"ratio": None, "ratio_interval": [1.0, None]} == read_result(uri).tree()
