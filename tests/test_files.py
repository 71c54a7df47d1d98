import json
import os
import stat
from pathlib import Path

import pytest

from mini_transformer.files import replacing, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file.txt"
    with replacing(file) as temporary:
        temporary.write_text("first")
        assert not file.exists()
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "first"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file") as temporary:
        temporary.unlink()
        temporary.touch(mode=0o600)  # as some libraries write
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert stat.S_ISREG((tmp_path / "file").stat().st_mode)


def test_json_keeps_accents(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"œuf": "été"})
    assert "œuf" in (tmp_path / "f.json").read_text(encoding="utf-8")


def test_json_holds_names_that_are_no_unicode(tmp_path: Path) -> None:
    value = {os.fsdecode(b"th\xe9"): "été"}
    write_json(tmp_path / "f.json", value)
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == value
