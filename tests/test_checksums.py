import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mini_transformer.checksums import SUMS, check, read, replacing_listed
from mini_transformer.errors import UserError
from tests.conftest import FABLES

# writes a file, and dies at the given renaming: of the list, of the file itself, or of the list again
KILLED = """
import os, signal, sys
from pathlib import Path
from mini_transformer.checksums import replacing_listed
rename, left = os.replace, int(sys.argv[1])
def replace(*names):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    rename(*names)
os.replace = replace
with replacing_listed(Path("file")) as temporary:
    temporary.write_text("new")
"""


def put(path: Path, text: str) -> None:
    with replacing_listed(path) as temporary:
        temporary.write_text(text)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("renamings", "left"), [(0, "old"), (1, "old"), (2, "new")])
def test_a_kill_between_a_file_and_its_hash_is_no_damage(
    tmp_path: Path, listed: bool, renamings: int, left: str
) -> None:
    file = tmp_path / "file"
    put(file, "old")
    if not listed:
        (tmp_path / SUMS).unlink()
    done = subprocess.run([sys.executable, "-c", KILLED, str(renamings)], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == left
    check(file)
    put(file, "newest")
    check(file)
    assert len(read(tmp_path)["file"]) == 1
    file.write_text("old")
    with pytest.raises(UserError, match="damaged, or changed since it was written"):
        check(file)


def test_a_damaged_list_is_refused_and_written_anew(tmp_path: Path) -> None:
    put(tmp_path / "file", "text")
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=tmp_path, check=True)
    for content in (b"\xff", b"\n", b"abc  file\n"):
        (tmp_path / SUMS).write_bytes(content)
        with pytest.raises(UserError, match=f"{SUMS}: damaged"):
            check(tmp_path / "file")
        put(tmp_path / "file", "text")
        check(tmp_path / "file")
    os.remove(tmp_path / "file")
    with pytest.raises(UserError, match="file: missing, but listed"):
        check(tmp_path / "file")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_flipped_bit_in_a_model_of_ours_is_named(trained: Path, tmp_path: Path, call, name: str) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(trained, tmp_path / "out")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    message = f"{folder / name}: damaged, or changed since it was written; put the original back, or remove {SUMS}"
    for command in (["evaluate", "--data", FABLES], ["generate", "--max-new-tokens", 3]):
        code, out, err = call(*command, "--model-dir", folder, "--device", "cpu")
        assert (code, out) == (2, "")
        assert err == f"{command[0]}: {message} if this is what you want\n"
