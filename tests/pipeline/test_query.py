"""Tables beside shards: what they say, who reads them, how they are asked, and that they follow their shards."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from sets import render_here, text_spec, write_texts
from typer.testing import CliRunner

from data_specs import open_shards, table
from data_specs.manifest import read_manifest
from data_specs.records import SampleInfo
from data_specs.verify import clean_litter, verify_set
from infra.cli import app
from infra.look import contact_sheet
from pipeline.removal import remove


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of twenty rendered passages, one of them broken."""
    folder = tmp_path_factory.mktemp("query")
    write_texts(folder / "texts/a.jsonl", [f"a{i}" for i in range(19)] + ["broken"])
    render_here(text_spec(folder / "texts"), folder / "run")
    return folder / "run"


def run(*arguments: object) -> list[str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_a_row_a_sample_that_says_what_the_sample_says(made: Path) -> None:
    items = open_shards(str(made / "images/train"))
    rows = pq.ParquetFile(next((made / "images/train").glob("*.parquet")))
    assert rows.schema_arrow.names == [name for name in table.schema().names if name != "split"]
    everything = ds.dataset(sorted((made / "images/train").glob("*.parquet"))).to_table().to_pylist()
    assert [row["key"] for row in everything] == [item["__key__"] for item in items]
    for row, item in zip(everything, items, strict=True):
        assert (row["document"], row["text"], row["cls"]) == (item["json"]["id"], item["json"]["text"], item["cls"])
        row_of_json = table.row_of(SampleInfo.parse(json.dumps(item["json"]), "its json"))
        known = row_of_json.items() - {("ink", 0.0), ("script", ""), ("hash", 0)}
        assert known <= row.items(), "the child's row is not what the json says"
        assert row["licence"] == "CC-BY-4.0" and row["script"] == "LATIN"
        assert 0 < row["ink"] < 1 and row["num_words"] == 2
        tar = (made / "images/train" / row["shard"]).read_bytes()
        assert tar[row["offset"] - 512 :].startswith(row["key"].encode() + b".")


def test_duckdb_polars_and_datasets_read_them_as_one(made: Path) -> None:
    import datasets
    import duckdb

    pattern, number = str(made / "images/train/*.parquet"), len(open_shards(str(made / "images/train")))
    assert duckdb.sql(f"SELECT count(*) FROM read_parquet('{pattern}')").fetchall() == [(number,)]
    read = datasets.load_dataset("parquet", data_files=pattern, split="train", cache_dir=str(made.parent / "cache"))
    assert len(read) == number
    polars = pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    assert polars.read_parquet(pattern).height == number


def test_an_expression_gives_a_table_ids_or_json(made: Path) -> None:
    shown = run("query", made, "text like 'an %'", "--limit", "1")
    assert shown[0].split()[:3] == ["key", "split", "unit"] and len(shown) == 3 and "1 shown" in shown[-1]
    rows = [json.loads(line) for line in run("query", made, "text like 'an %'", "--format", "json")]
    assert rows and all(row["text"].startswith("an ") for row in rows)
    ids = run("query", made, "text like 'an %'", "--format", "ids")
    assert ids == [f"train/{row['unit']}/{row['key']}" for row in rows]
    other = run("query", made, "--shard-set", "images/val", "--format", "ids")
    assert other == run("query", made, "true", "--set", "images/val", "--format", "ids")  # as it was called first
    assert len(other) == len(open_shards(str(made / "images/val")))
    assert run("query", made, "num_words > 99", "--format", "ids") == []


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("no_such = 1", "columns: key, split, unit"),
        ("num_words >", "syntax error"),
        ("1) or (1 = (select count(*) from read_csv('/etc/passwd'))", "disabled"),
        ("true) ; drop table samples; --", "'true)"),
        ("", "columns: key"),
    ],
)
def test_what_is_no_expression_is_one_line(made: Path, expression: str, said: str) -> None:
    result = CliRunner().invoke(app, ["query", str(made), expression])
    assert isinstance(result.exception, ValueError) and said in str(result.exception), result.exception
    assert "\n" not in str(result.exception)


def test_tables_follow_their_shards(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts/a.jsonl", [f"a{i}" for i in range(12)])
    root = tmp_path / "run"
    render_here(text_spec(tmp_path / "texts"), root)
    gone, *_ = run("query", root, "true", "--format", "ids")
    before = {row["key"]: row for row in table.query(*_set(root), "true").to_pylist()}
    list(remove(str(root), [], [gone]))
    after = {row["key"]: row for row in table.query(*_set(root), "true").to_pylist()}
    assert before.keys() - after.keys() == {gone.split("/")[2]}
    for key, row in after.items():
        assert row | {"shard": "", "offset": 0} == before[key] | {"shard": "", "offset": 0}
    assert list(verify_set(str(root / "images/train"))) == []
    path = next((root / "images/train").glob("*.parquet"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    assert [path.name in fault for fault in verify_set(str(root / "images/train"))] == [True]
    with pytest.raises(ValueError, match=f"{path.name}: its bytes are not those that were made"):
        table.query(*_set(root), "true")
    set_uri, shards = _set(root)
    before_digests = [entry.model_copy(update={"table_sha256": None}) for entry in shards]
    with pytest.raises(ValueError, match=f"{path.name}: not the table of a shard"):
        table.query(set_uri, before_digests, "true")
    path.write_bytes(whole.replace(b"CC-BY-4.0", b"CC-BY-9.0"))  # still a table of as many rows
    assert "CC-BY-9.0" in table.query(set_uri, before_digests, "true").column("licence").to_pylist()
    with pytest.raises(ValueError, match=f"{path.name}: its bytes are not those that were made"):
        table.query(set_uri, shards, "true")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match=r"\.parquet: has 0 rows, its shard \d samples; run `dnd verify`"):
        table.query(set_uri, before_digests, "true")
    (root / "images/train/000099-00000000.parquet").touch()
    assert clean_litter(str(root / "images/train")) == ["000099-00000000.parquet"]


def test_readers_survive_an_empty_split(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts/a.jsonl", ["alone"])
    root = tmp_path / "run"
    render_here(text_spec(tmp_path / "texts", "render.val_share=0"), root)
    assert len(open_shards(str(root / "images/val"))) == 0 and list(verify_set(str(root / "images/val"))) == []
    assert run("query", root, "true", "--set", "images/val", "--format", "ids") == []
    assert "index.html" in run("report", root)[-1]
    with pytest.raises(ValueError, match="images/val: the shard set is empty"):
        contact_sheet(str(root), "images/val", 0)


def _set(root: Path) -> tuple[str, tuple[object, ...]]:
    uri = str(root / "images/train")
    return uri, read_manifest(f"{uri}/manifest.json").shardlist  # type: ignore[return-value]
