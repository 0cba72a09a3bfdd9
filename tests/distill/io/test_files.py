import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from distill.errors import DiskFull, UserError
from distill.io import files
from distill.io.disk import disk_full_errors, is_full, require_space
from distill.io.files import (
    check_digests,
    directory_digest,
    directory_uri,
    file_digests,
    new_directory,
    read_record,
    remove_temporary,
    write_json,
    write_record,
    write_text,
)

KILLED = """
import os, signal
from pathlib import Path
from distill.io.files import new_directory
with new_directory(Path({path!r})) as tmp_dir:
    (tmp_dir / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_record_is_read_back_and_any_other_bytes_are_refused(tmp_path):
    path, values = tmp_path / "a.json", {"a": 0.1, "b": ["c", None], "d": {"e": 1}}
    write_record(path, values)
    assert read_record(path, "make it again") == values
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with contextlib.suppress(UserError):  # white space may change: the values are equal
            assert read_record(path, "") == values
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a.json is damaged: .*; make it again$"):
        read_record(path, "make it again")
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"a.json is damaged: it is not a JSON object; make it again$"):
        read_record(path, "make it again")
    path.unlink()
    with pytest.raises(UserError, match=r"a.json is missing; make it again$"):
        read_record(path, "make it again")


def test_a_record_without_a_checksum_is_refused(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(UserError, match="a.json is damaged: its values do not match its checksum"):
        read_record(tmp_path / "a.json", "")


def test_digests_name_the_file_that_is_not_what_it_was(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "in/b"):
        (tmp_path / name).write_text(name)
    digests = file_digests(tmp_path, tmp_path.rglob("*"))
    assert sorted(digests) == ["a", "in/b"]
    check_digests(tmp_path, digests, "")
    (tmp_path / "in" / "b").write_text("a")  # swapped
    with pytest.raises(UserError, match=r"in/b is damaged: it has SHA-256 .*, not .* as written; hint$"):
        check_digests(tmp_path, digests, "hint")
    (tmp_path / "in" / "b").unlink()
    with pytest.raises(UserError, match=r"in/b is missing .*; hint$"):
        check_digests(tmp_path, digests, "hint")


def test_a_full_disk_leaves_a_file_as_it_was_and_nothing_beside_it(small_disk):
    disk = small_disk(20_000)
    write_text(disk / "a.json", "old")
    with pytest.raises(
        DiskFull, match=r"a.json cannot be written, the disk is full: it needs 60.0 kB, 16.4 kB are left"
    ):
        write_text(disk / "a.json", "new" * 20_000)
    assert [(path.name, path.read_text()) for path in disk.iterdir()] == [("a.json", "old")]


def test_a_full_disk_leaves_a_directory_as_it_was(small_disk):
    disk = small_disk(20_000)
    with new_directory(disk / "a") as tmp_dir:
        (tmp_dir / "file").write_text("old")
    with (
        pytest.raises(DiskFull, match=r"disk0/a/another cannot be written") as caught,
        new_directory(disk / "a") as tmp_dir,
    ):
        (tmp_dir / "file").write_text("new")
        write_text(tmp_dir / "another", "new" * 20_000)
    assert "/.a." not in str(caught.value) and (disk / "a" / "file").read_text() == "old"
    assert [path.name for path in disk.rglob("*")] == ["a", "file"]


def test_what_libraries_say_of_a_full_disk_is_understood_and_nothing_else_is(tmp_path):
    quoted = RuntimeError("could not save")
    quoted.__cause__ = ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    full = [
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "quota"),
        Exception("database or disk is full"),
        quoted,
    ]
    assert all(map(is_full, full))
    assert not any(map(is_full, [OSError(errno.ENOENT, "No such file"), ValueError("full"), None]))
    with pytest.raises(FileNotFoundError), disk_full_errors(tmp_path):
        raise FileNotFoundError("no such file")


def test_a_full_disk_is_named_by_the_file_of_the_error_that_another_one_came_from(tmp_path):
    with (
        pytest.raises(DiskFull, match=r"^/store/weights cannot be written, the disk is full"),
        disk_full_errors(tmp_path),
    ):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/store/weights")
        except OSError as error:
            raise RuntimeError("MLflow failed") from error


def test_temporary_files_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED.format(path=str(tmp_path / "model"))])
    assert process.returncode == -signal.SIGKILL and any(path.is_dir() for path in tmp_path.iterdir())
    (tmp_path / ".config.yaml.12").touch()
    kept = [".hidden", ".mlflow.lock", "config.yaml.12", "model"]
    for name in kept:
        (tmp_path / name).touch()
    remove_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    remove_temporary(tmp_path / "missing")


def test_space_is_measured_where_a_directory_will_be(tmp_path):
    require_space(tmp_path / "not" / "yet", 1, "this")
    with pytest.raises(DiskFull, match=r"this needs about 1.0 EB in .*yet, which has .*B left; free some"):
        require_space(tmp_path / "not" / "yet", 10**18, "this")


def test_what_is_no_number_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_file_is_read_once_for_its_digest_until_it_changes(tmp_path, monkeypatch):
    """A student is hashed when it is saved, logged, and read by a later stage, but its bytes are read only once."""
    path = tmp_path / "model" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"some weights")
    read, whole = [], hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda file, kind: read.append(file.name) or whole(file, kind))
    digests = file_digests(tmp_path, [path])
    check_digests(tmp_path, digests, "hint")
    before = directory_digest(path.parent)
    assert len(read) == 1 and digests == {"model/weights": hashlib.sha256(b"some weights").hexdigest()}
    path.write_bytes(b"same weights")
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="weights is damaged"):
        check_digests(tmp_path, digests, "hint")
    assert directory_digest(path.parent) != before and len(read) == 2


@pytest.mark.parametrize("name", ["plain", "sp ace", "a%20b", "what?x=1", "h#1", "a:b;c&d+e", "back\\slash", "é\n日本"])
def test_the_uri_of_a_directory_leads_back_to_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri = directory_uri(Path(name))
    parts = urlsplit(uri)
    assert (parts.scheme, parts.netloc, parts.query, parts.fragment) == ("file", "", "", "")
    assert url2pathname(parts.path) == f"{tmp_path / name}/"
