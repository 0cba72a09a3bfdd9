"""Weights on the hub: headers and single tensors by range requests."""

import json
import os
import pickle
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.models.stored_tensors import read_headers
from tests.hub import Hub, process, start

# Writes (headers, sizes, tensors by name) to a file; prints the message to the user, or the bytes that were missing.
_FETCH = """
import pickle, sys
from distill.errors import ExpectedError
from distill.io import hub_ranges
from distill.models import remote_weights
hub_ranges._WAITS, hub_ranges._RECORD_EVERY = (0.0, 0.0), 2**16
source, out, *names = sys.argv[1:]
try:
    remote = remote_weights.remote_tensors(source, f"teacher {source!r}")
    names = [name for name in remote.tensors if name.startswith(tuple(names))]
    print(remote.missing_bytes(names))
    remote.prefetch(names, "its dense tensors")
    reader = remote.reader()
    values = {name: reader.read(name) for name in names}
    pickle.dump((remote.tensors, remote.sizes, values), open(out, "wb"))
except ExpectedError as error:
    print(error)
"""
_ON_DEMAND = _FETCH.replace('    remote.prefetch(names, "its dense tensors")\n', "")
# The process ends itself when a part has arrived.
_KILLED = _FETCH.replace(
    "source, out",
    """
import os
hub_ranges._REQUEST = 2**19
class Progress(remote_weights._Progress):
    def add(self, count):
        super().add(count)
        if self._done > 2**21:
            os.kill(os.getpid(), 9)
remote_weights._Progress = Progress
source, out""",
    1,
)
_MIB = 2**20
MODEL = "some/switch"


def tensors() -> dict[str, torch.Tensor]:
    """Like a Switch Transformer with 4 experts of 2 MiB, between dense tensors of 3 MiB and 1 MiB."""
    generator = torch.Generator().manual_seed(0)
    experts = {f"b.experts.{k}": torch.randn(512, 1024, generator=generator) for k in range(4)}
    dense = torch.randn(768, 1024, generator=generator)
    return {"a.dense": dense, **experts, "c.dense": torch.randn(256, 1024, generator=generator)}


def views() -> dict[str, torch.Tensor]:
    """Tensors that share storages, that are not contiguous, of several dtypes, and empty."""
    shared, table = torch.randn(96, 64), torch.arange(6000.0).reshape(100, 60)
    return {
        "shared.weight": shared,
        "encoder.embed_tokens.weight": shared,
        "lm_head.weight": shared.t(),
        "row": table[40:43],
        "columns": table[:, 7:9],
        "half": torch.randn(7, 5).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
    }


def write(directory: Path, values: dict[str, torch.Tensor], kind: str, *, shards: int = 1) -> Path:
    """A directory with weight files of one kind: ``safetensors`` or ``bin``."""
    directory.mkdir()
    stem, save = {"safetensors": ("model", save_file), "bin": ("pytorch_model", torch.save)}[kind]
    names, parts = list(values), {}
    for number in range(shards):
        file = f"{stem}.{kind}" if shards == 1 else f"{stem}-{number + 1:05}-of-{shards:05}.{kind}"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        save({name: values[name] for name in part}, directory / file)
        parts |= dict.fromkeys(part, file)
    if shards > 1:
        (directory / f"{stem}.{kind}.index.json").write_text(json.dumps({"weight_map": parts}))
    return directory


def fetch(hub: Hub, out: Path, *names: str, code: str = _FETCH, source: str = MODEL, **environment: str) -> str:
    """What a process says that fetches the tensors whose names start with ``names``."""
    return process(code, source, str(out), *(names or [""]), **{**hub.environment, **environment}).stdout.strip()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )


@pytest.mark.parametrize("code", [_FETCH, _ON_DEMAND], ids=["prefetched", "on demand"])
@pytest.mark.parametrize(
    "kind,shards,values",
    [("safetensors", 1, tensors), ("safetensors", 3, tensors), ("bin", 1, views), ("bin", 3, views)],
)
def test_headers_and_values_are_those_of_the_files(hub, tmp_path, kind, shards, values, code):
    written = values()
    directory = write(tmp_path / "model", written, kind, shards=shards)
    hub.model(MODEL).commit(directory)
    assert fetch(hub, tmp_path / "out", code=code).isdigit()
    headers, sizes, found = pickle.loads((tmp_path / "out").read_bytes())
    assert headers == read_headers(directory, "it") and same(found, written)
    assert sizes == {path.name: path.stat().st_size for path in directory.glob(f"*.{kind}")}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_only_what_is_wanted_is_sent_and_that_once(hub, tmp_path, kind):
    directory = write(tmp_path / "model", tensors(), kind)
    [file] = [path.name for path in directory.iterdir()]
    commit = hub.model(MODEL).commit(directory)
    fetch(hub, tmp_path / "out", "nothing")
    headers = hub.sent[file]
    assert headers <= 2**18 + 2**10 and not pickle.loads((tmp_path / "out").read_bytes())[2]
    missing = int(fetch(hub, tmp_path / "out", "a.dense", "c.dense"))
    assert hub.sent[file] == headers + missing
    assert 4 * _MIB - headers <= missing <= 4 * _MIB + 2**10
    hub.requests.clear()
    assert fetch(hub, tmp_path / "out", "a.dense", "c.dense", source=f"{MODEL}@{commit}") == "0"
    assert not hub.requests
    hub.close()
    pinned = {"source": f"{MODEL}@{commit}", "HF_HUB_OFFLINE": "1"}
    assert fetch(hub, tmp_path / "offline", "a.dense", **pinned) == "0"
    assert same(pickle.loads((tmp_path / "offline").read_bytes())[2], {"a.dense": tensors()["a.dense"]})
    refusal = fetch(hub, tmp_path / "offline", "b.experts.1", **pinned)
    assert f"the hub does not provide its {file} at {commit[:12]}: HF_HUB_OFFLINE is set, and the local" in refusal


def test_a_fetch_is_announced_with_its_size_and_needs_space(hub, tmp_path):
    hub.model(MODEL).commit(write(tmp_path / "model", tensors(), "safetensors"))
    fetch(hub, tmp_path / "out", "nothing")
    settings = "import shutil\nfrom types import SimpleNamespace as Values\nfrom distill.io import hub_answers\n"
    full = f"{settings}shutil.disk_usage = lambda path: Values(free=3_000_000)\n{_FETCH}"
    _, message = fetch(hub, tmp_path / "out", "a", "c", code=full).splitlines()
    assert message.startswith(f"fetching its dense tensors of {MODEL} needs about 3.9 MB in ") and message.endswith(
        "which has 3.0 MB left; free some, or set HF_HOME to a directory of another disk"
    )
    announced = f"{settings}hub_answers._SILENT_SECONDS = 0.0\n{_FETCH}"
    done = process(announced, MODEL, str(tmp_path / "out"), "a", "c", **hub.environment)
    assert f"Fetching 3.9 MB of the 12.6 MB of {MODEL} (its dense tensors)" in done.stderr.splitlines()


def test_safetensors_take_precedence(hub, tmp_path):
    directory = write(tmp_path / "model", tensors(), "safetensors")
    torch.save({}, directory / "pytorch_model.bin")
    hub.model(MODEL).commit(directory)
    fetch(hub, tmp_path / "out", "nothing")
    assert list(hub.sent) == ["model.safetensors"]


def test_a_connection_that_breaks_off_goes_on_where_it_was(hub, tmp_path):
    directory = write(tmp_path / "model", tensors(), "bin")
    hub.model(MODEL).commit(directory)
    hub.breaks["pytorch_model.bin"] = [2, 100, 2**20, 2**19 + 1]
    assert fetch(hub, tmp_path / "out").isdigit() and not hub.breaks["pytorch_model.bin"]
    assert same(pickle.loads((tmp_path / "out").read_bytes())[2], tensors())
    size = (directory / "pytorch_model.bin").stat().st_size
    assert size - 100 < hub.sent["pytorch_model.bin"] <= size


def test_a_hub_that_stays_away_is_one_sentence_and_a_later_command_goes_on(hub, tmp_path):
    directory = write(tmp_path / "model", tensors(), "safetensors")
    hub.model(MODEL).commit(directory)
    fetch(hub, tmp_path / "out", "nothing")
    hub.breaks["model.safetensors"] = [_MIB + 1, 0, 0, 0]
    missing, message = fetch(hub, tmp_path / "out").splitlines()
    assert message.startswith(f"teacher '{MODEL}' cannot be fetched: the connection to the hub broke off at byte ")
    assert message.endswith("; run the same command again, it continues there") and "of model.safetensors (" in message
    left = int(fetch(hub, tmp_path / "out"))
    assert left == int(missing) - _MIB - 1
    assert same(pickle.loads((tmp_path / "out").read_bytes())[2], tensors())
    assert hub.sent["model.safetensors"] == (directory / "model.safetensors").stat().st_size


def test_a_killed_command_goes_on_where_it_was(hub, tmp_path):
    directory = write(tmp_path / "model", tensors(), "safetensors")
    hub.model(MODEL).commit(directory)
    fetch(hub, tmp_path / "out", "nothing")
    killed = start(_KILLED, MODEL, str(tmp_path / "out"), "", **hub.environment)
    missing = int(killed.communicate()[0])
    assert killed.returncode == -9
    left = int(fetch(hub, tmp_path / "out"))
    lost = 4 * (2**16 + 2**16)  # of each connection: what is not recorded yet, and a block that has just arrived
    assert missing - 2 * _MIB - lost <= left <= missing - 2 * _MIB + lost
    assert same(pickle.loads((tmp_path / "out").read_bytes())[2], tensors())


def test_two_commands_at_a_time_fetch_once(hub, tmp_path):
    directory = write(tmp_path / "model", tensors(), "safetensors")
    hub.model(MODEL).commit(directory)
    running = [start(_FETCH, MODEL, str(tmp_path / name), "", **hub.environment) for name in ("one", "two")]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert all(same(pickle.loads((tmp_path / name).read_bytes())[2], tensors()) for name in ("one", "two"))
    assert hub.sent["model.safetensors"] == (directory / "model.safetensors").stat().st_size


def test_a_hub_without_ranges_is_asked_once(hub, tmp_path):
    hub.ranges = False
    hub.model(MODEL).commit(write(tmp_path / "model", tensors(), "safetensors"))
    message = fetch(hub, tmp_path / "out")
    assert message.startswith(f"teacher '{MODEL}' cannot be read in parts: {hub.environment['HF_ENDPOINT']} ignores")
    assert f"; fetch all of it with: hf download {MODEL} --revision " in message
    assert len([path for path in hub.requests if "/resolve/" in path]) == 1


def test_another_host_that_has_the_files_gets_no_token(hub, tmp_path):
    values = {"a.dense": torch.ones(3)}
    hub.model(MODEL).commit(write(tmp_path / "model", values, "safetensors"))
    elsewhere = Hub(tmp_path / "unused")
    elsewhere.repositories = hub.repositories
    hub.files_at = elsewhere.environment["HF_ENDPOINT"].replace("127.0.0.1", "localhost")
    fetch(hub, tmp_path / "out", HF_TOKEN="hf_secret", NO_PROXY="127.0.0.1,localhost")
    elsewhere.close()
    assert same(pickle.loads((tmp_path / "out").read_bytes())[2], values)
    assert set(hub.tokens) == {"Bearer hf_secret"} and set(elsewhere.tokens) == {None} and hub.sent == {}


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(hub, tmp_path):
    directory = write(tmp_path / "model", {}, "bin")
    torch.save({"a": torch.ones(2), "b": Hostile(tmp_path / "made")}, directory / "pytorch_model.bin")
    hub.model(MODEL).commit(directory)
    assert "holds more than tensors (posix.mkdir), which could run code" in fetch(hub, tmp_path / "out")
    assert not (tmp_path / "made").exists()


def rezipped(path: Path) -> None:
    """Write an archive again with another program, which does not align records."""
    with zipfile.ZipFile(path) as old:
        records = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in records.items():
            new.writestr(name, content)


def changed(path: Path) -> None:
    """Give the header of one record another length, but not the archive's directory."""
    content, name = bytearray(path.read_bytes()), b"pytorch_model/data/1"
    place = content.index(name)
    content[place - 2 : place] = (int.from_bytes(content[place - 2 : place], "little") + 8).to_bytes(2, "little")
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage,message",
    [
        (rezipped, "cannot be read in parts: pytorch_model.bin is no archive of torch.save"),
        (changed, "cannot be read in parts: pytorch_model.bin is no archive of torch.save"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "has the format of torch before 1.6; convert it with"),
        (lambda path: path.write_bytes(b"<html>" * 10_000), "pytorch_model.bin is damaged (it is no zip archive)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "pytorch_model.bin is damaged ("),
        (lambda path: path.write_bytes(b""), "pytorch_model.bin is damaged (it is no zip archive)"),
    ],
    ids=["rezipped", "changed", "old", "page", "cut", "empty"],
)
def test_damaged_pickles_are_one_sentence(hub, tmp_path, damage, message):
    directory = write(tmp_path / "model", tensors(), "bin")
    damage(directory / "pytorch_model.bin")
    hub.model(MODEL).commit(directory)
    began = time.monotonic()
    assert message in fetch(hub, tmp_path / "out") and time.monotonic() - began < 15


@pytest.mark.parametrize(
    "files,message",
    [
        ({"flax_model.msgpack": "x"}, "has neither model.safetensors nor pytorch_model.bin on the hub; name another"),
        ({"model.safetensors": b"\xff" * 100}, "model.safetensors is damaged (its header does not fit into it)"),
        ({"model.safetensors": ""}, "model.safetensors is damaged ("),
        (
            {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1.safetensors"}})},
            "model.safetensors.index.json names model-1.safetensors, which is not on the hub",
        ),
        ({"model.safetensors.index.json": "["}, "is damaged: it is not JSON"),
    ],
)
def test_models_without_readable_weights_are_one_sentence(hub, tmp_path, files, message):
    hub.model(MODEL).commit(files)
    assert message in fetch(hub, tmp_path / "out")
