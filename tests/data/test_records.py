"""Every kind of source, read from real files; and what is said about damaged ones."""

import bz2
import gzip
import importlib
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mini_transformer.data import records
from mini_transformer.data.reading import ReaderConfig
from mini_transformer.data.sources import read_documents
from mini_transformer.errors import UserError
from tests.conftest import FABLES, ROOT

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")
zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": zstd.open}
Call = Callable[..., tuple[int, str, str]]
TEXTS = ["Un cœur\nsimple", 'Deux, "trois"\n\n\n\nquatre', "x" * 600_000 + " fin"]


def read(path: Path, **reading: object) -> list[str]:
    return read_documents([path], ReaderConfig(**reading))  # type: ignore[arg-type]


def lines(texts: list[object], field: str = "text") -> str:
    return "".join(json.dumps({field: text, "n": 3}) + "\n" for text in texts)


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst"],
)
def test_records_are_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    made = datasets.Dataset.from_dict(
        {"text": [TEXTS[0].replace("\n", "\r\n") + "\n\n", "", *TEXTS[1:]], "n": [1, 2, 3, 4]}
    )
    if name.endswith(".parquet"):
        made.to_parquet(str(path))
    elif name.endswith(("csv", "tsv")):
        made.to_csv(str(path), index=False, sep="\t" if name.endswith("tsv") else ",")
    else:
        content = json.dumps(made.to_list()) if name == "a.json" else lines(made["text"][:])
        opener = OPEN.get(path.suffix, open)
        with opener(path, "wt", encoding="utf-8") as file:
            file.write(content)
    found = read(path)
    assert found == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "encoding", "texts"),
    [
        ("D.JSONL", '{"text": "été"}\n', "utf-8", ["été"]),
        ("d.ndjson", '{"text": "été"}\n', "latin-1", ["été"]),
        ("d.jsonlines", '\ufeff{"text": "été"}\n', "utf8", ["été"]),
        ("D.JSONL.GZ", '{"text": "été"}\n', "cp1252", ["été"]),
        ("list.json", ' ["été", "deux"]', "utf-8", ["été", "deux"]),
        ("lines.json", '[{"text": "été"}\n,{"text": "deux"}]\n', "utf-8", ["été", "deux"]),
        ("jq.json", '{\n  "text": "été"\n}\n{\n  "text": "deux"\n}\n', "utf-8", ["été", "deux"]),
        ("a[1]*.jsonl", '{"text": "été"}\n', "utf-8", ["été"]),  # not a pattern
        ("UP.CSV", "n,text\n1,été\n", "cp1252", ["été"]),
        ("excel.csv", 'n;text\n1,5;été\n2;"a;b"\n', "cp1252", ["été", "a;b"]),
        ("excel.csv", "n\ttext\n1\tœuf, été\n", "utf-16", ["œuf, été"]),
        ("bom.csv", "\ufefftext\nété\n", "utf-8", ["été"]),
        (
            "words.csv",
            'text,n\nNA,1\nNone,2\nnull,3\n12,4\n"",5\n1.50,6\n',
            "utf-8",
            ["NA", "None", "null", "12", "1.50"],
        ),
        ("long.csv", f"n,text\n1,{'x' * 200_000}\n2,deux\n", "utf-8", ["x" * 200_000, "deux"]),
        ("mixed.csv", "n,text\n" + "1,un\n" * 99_999 + ",un\n", "utf-8", ["un"] * 100_000),
        ("T.TSV.gz", "n\ttext\n1\tété, 2\n", "cp1252", ["été, 2"]),
    ],
)
def test_suffixes_encodings_and_separators(
    tmp_path: Path, name: str, content: str, encoding: str, texts: list[str]
) -> None:
    path = tmp_path / name
    with OPEN.get(path.suffix.lower(), open)(path, "wb") as file:
        file.write(content.encode(encoding))
    assert read(path, encoding=encoding) == texts


def test_the_field_alone_is_read_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"n": [[1.0] * 9], "content": ["un"]}).to_parquet(str(path))
    assert read(path, text_field="content") == ["un"]
    assert next(records._records(path, ReaderConfig(text_field="content"))) == {"content": "un"}
    with pytest.raises(UserError, match=r"^`text_field`: .*a\.parquet has no field 'text'; its fields: content, n$"):
        read(path)


def test_the_fields_that_an_error_names_are_few_and_short(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(["a long text without a header " * 9, *map(str, range(40))]) + "\n")
    with pytest.raises(UserError, match=r"no field 'text'; its fields: 0, 1, .*, …$") as error:
        read(path)
    assert len(str(error.value)) < 300
    path.write_text("a long text without a header " * 9)
    with pytest.raises(UserError, match=r"its fields: a long text without a header a long text…$"):
        read(path)


def test_a_folder_of_records_and_another_field(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text(lines(["un"], "content"))
    (tmp_path / "2.jsonl").write_text(lines(["deux"], "content"))
    assert read(tmp_path, text_field="content") == ["un", "deux"]
    assert read(tmp_path / "*.jsonl", text_field="content") == ["un", "deux"]
    with pytest.raises(UserError, match=r"^`text_field`: .*1\.jsonl has no field 'text'; its fields: content, n$"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_packed_plain_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt.{suffix}"
    with OPEN[path.suffix](path, "wb") as file:
        file.write(FABLES.read_bytes())
    assert read(path) == read(tmp_path) == read(FABLES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"a\.txt\.{suffix}: cut short or damaged"):
        read(path)


def test_a_dataset_of_the_hub_from_a_folder_laid_out_like_it(tmp_path: Path) -> None:
    for config in ("fables", "plays"):
        (tmp_path / "repo" / config).mkdir(parents=True)
        for split in ("train", "validation"):
            made = datasets.Dataset.from_dict({"text": [f"{config} {split} {i}" for i in range(3)]})
            made.to_parquet(str(tmp_path / "repo" / config / f"{split}-00000-of-00001.parquet"))
    (tmp_path / "repo" / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {c}\n  data_files:\n"
            + "".join(f"  - split: {s}\n    path: {c}/{s}-*\n" for s in ("train", "validation"))
            for c in ("fables", "plays")
        )
        + "---\n"
    )
    assert read(Path(f"hf:{tmp_path / 'repo'}:plays")) == [f"plays train {i}" for i in range(3)]
    assert read(Path(f"hf:{tmp_path / 'repo'}:fables:validation")) == [f"fables validation {i}" for i in range(3)]
    with pytest.raises(UserError, match=r"^hf:.*: cannot be read"):
        read(Path(f"hf:{tmp_path / 'repo'}:novels"))
    with pytest.raises(UserError, match="expected hf:NAME"):
        read(Path("hf:a:b:c:d"))


def test_a_dataset_trains_from_the_cache_as_from_memory(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for long
    path = tmp_path / "a.jsonl"
    path.write_text(lines(list(FABLES.read_text(encoding="utf-8").split("\n\n\n"))))
    flags = ["--data", path, "--cache-dir", tmp_path / "cache"]
    assert "162" not in call("prepare", *flags)[1]
    out = call("prepare", *flags)[1]
    large = call("prepare", *flags, "--in-memory", 0)[1]
    assert "tokenizing" in large
    assert large.endswith(out)
    again = call("prepare", *flags, "--in-memory", 0)[1]
    assert "from the cache, nothing has changed" in again
    code, _, err = call("prepare", "--data", "hf:someone/nothing-of-this-name", *flags[2:])
    assert code == 2
    assert err.startswith("prepare: hf:someone/nothing-of-this-name: ")
    assert err.count("\n") == 1


def test_unreadable_records_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(["un", None, "deux", None, None, None, "trois"]))
    assert read(path) == ["un", "deux", "trois"]
    told = "; ".join(f"record {number}: nothing there" for number in (2, 4, 5))
    assert f"{path}: 4 unreadable records left out ({told}; and 1 more)\n" == capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"more than 2 records without readable text in 'text' \(record 2: nothing there;"
    ):
        read(path, max_unreadable=2)
    path.write_text('[null, {"text": "un"}, ["deux"], {"txt": 1}, "trois"]')
    assert read(path) == ["un", "trois"]
    path.write_text(lines([1, 2]))
    with pytest.raises(UserError, match="record 1: a int, not a text"):
        read(path, max_unreadable=0)


def no_rows(path: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    with pyarrow.parquet.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)


def damage_parquet(path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["un"] * 1000}).to_parquet(str(path))
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.parquet", damage_parquet, "cut short, damaged or not this format (Parquet magic bytes not found"),
        ("a.jsonl.gz", lambda p: p.write_bytes(gzip.compress(os.urandom(999))[:200]), "cut short or damaged ("),
        ("a.jsonl.zst", lambda p: p.write_bytes(zstd.compress(os.urandom(999))[:200]), "cut short or damaged ("),
        ("a.txt.zst", lambda p: p.write_text("plain"), "cut short or damaged (Unable to decompress"),
        (
            "a.jsonl",
            lambda p: p.write_text('{"text": "un"}\n{"text": deux}\n'),
            "not this format (line 2: Expecting value",
        ),
        ("a.jsonl", lambda p: p.write_bytes(os.urandom(3000)), "a binary file (zero byte at offset "),
        ("a.csv", lambda p: p.write_bytes(b"text\n\xff\xfe\n"), "not utf-8: byte 0xff at offset 5; "),
        ("a.jsonl", lambda p: p.write_text('{"text": "\\ud800"}\n'), "empty: there is no text to learn from"),
        ("a.jsonl", lambda p: p.write_text(""), "empty: there is no text to learn from"),
        ("a.jsonl", lambda p: None, "no such file"),
        ("a.txt.gz", lambda p: p.write_text("plain"), "cut short or damaged (Not a gzipped file"),
        ("*.txt", lambda p: None, "no file fits this pattern"),
        ("a.parquet", no_rows, "empty: there is no text to learn from"),
        ("a.csv", lambda p: p.write_text("\n"), "empty: there is no text to learn from"),
        (
            "a.csv",
            lambda p: p.write_text("text,n\na, b,1\nc,2\n"),
            "not this format (line 2 has 3 fields, the header 2)",
        ),
        (
            "a.csv",
            lambda p: p.write_text("text,n\na,1\nb, c,2\n"),
            "not this format (line 3 has 3 fields, the header 2)",
        ),
        ("a.csv", lambda p: p.write_bytes(b"text\n\xe9t\xe9\n"), "name it (--encoding cp1252 is that of Windows)"),
        (
            "a.jsonl",
            lambda p: p.write_bytes(b'{"text": "\xe9t\xe9"}\n'),
            "name it (--encoding cp1252 is that of Windows)",
        ),
        ("a.json", lambda p: p.write_text("null"), "not this format (line 1: it begins with 'null', not with a record"),
        (
            "a.json.gz",
            lambda p: p.write_bytes(gzip.compress(b" \n null")),
            "not this format (line 2: it begins with 'null'",
        ),
        ("a.json", lambda p: p.write_text('[{"text": "a"}, {"text": '), "not this format (line 1: Expecting value"),
        ("a.json", lambda p: p.write_text("[" * 100_000), "not this format (line 1: maximum recursion depth exceeded"),
        (
            "a.jsonl",
            lambda p: p.write_text('{"text": ' + "9" * 5000 + "}"),
            "not this format (line 1: Exceeds the limit",
        ),
        ("a.json", lambda p: p.write_text("12"), "not this format (line 1: it begins with '12', not with a record"),
    ],
)
@pytest.mark.parametrize("in_memory", [0, 10**6])
def test_what_is_damaged_is_told_in_one_line(
    tmp_path: Path, call: Call, name: str, make: Callable[[Path], object], message: str, in_memory: int
) -> None:
    make(tmp_path / name)
    flags = ["--data", tmp_path / name, "--in-memory", in_memory, "--cache-dir", tmp_path / "cache"]
    code, _, err = call("prepare", *flags)
    assert code == 2
    assert err.startswith(f"prepare: {tmp_path / name}: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("cache/shards/*/"))


def test_without_the_library_one_line_says_so(tmp_path: Path) -> None:
    name = tmp_path / "a.parquet"
    no_rows(name)
    code = "import sys; sys.modules['pyarrow'] = None; from mini_transformer import cli; sys.exit(cli.run('prepare'))"
    result = subprocess.run(
        [sys.executable, "-c", code, "--data", name], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 2
    assert result.stderr == f"prepare: {name}: needs the Python package 'pyarrow': pip install pyarrow\n"
