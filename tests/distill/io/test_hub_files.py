"""Files of the hub: reading from the cache, and messages and waits if the hub does not answer."""

import json
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.io.hub_files import local_files
from teachers import save_teacher
from teachers.build import build_teacher
from teachers.config import SwitchConfig
from tests.hub import Hub, process

# The content of every file of "KIND NAME", or the message to the user; then the total seconds.
_READ = """
import sys, time
from distill.io import hub_answers
from distill.io import hub_files
from distill.errors import UserError
hub_answers._ANSWER_SECONDS, hub_answers._SILENT_SECONDS = 20, 15
began = time.monotonic()
for argument in sys.argv[1:]:
    kind, source, *files = argument.split()
    try:
        directory = hub_files.local_files(source, kind, f"teacher {source!r}", tuple(files))
        print(*sorted(f"{path.name}={path.read_text()}" for path in directory.iterdir()))
    except UserError as error:
        print(error)
print(f"{time.monotonic() - began:.1f}")
"""
_PLACE = """
from distill.io.hub_files import dataset_place
from distill.errors import UserError
try:
    print(dataset_place("some/texts", "data.corpus"))
except UserError as error:
    print(error)
"""
_WHOLE = "import huggingface_hub\nhuggingface_hub.snapshot_download('some/texts', repo_type='dataset')"
_LOAD = """
import sys, time
from teachers import load_teacher
from distill.errors import UserError
began = time.monotonic()
for source in sys.argv[1:]:
    try:
        print(f"{load_teacher(source).shared.weight.sum().item():.6f}")
    except UserError as error:
        print(error)
print(f"{time.monotonic() - began:.1f}")
"""
_HASTY = _READ.replace("20, 15", "0.5, 0.1")
WORDS = "model some/words tokenizer.json config.json"


def read(hub: Hub, *arguments: str, **environment: str) -> tuple[list[str], float, list[str]]:
    """The output for each, the seconds, and the lines on stderr."""
    done = process(_READ, *arguments, **{**hub.environment, **environment})
    *printed, seconds = done.stdout.splitlines()
    return printed, float(seconds), done.stderr.splitlines()


@pytest.fixture
def words(hub):
    """A repository with other files that are not needed."""
    repository = hub.model("some/words")
    repository.commit({"tokenizer.json": "1", "README.md": "long", "evil.py": "x"}, "main", "v1")
    return repository


def test_only_what_is_wanted_is_downloaded_and_that_once(hub, words):
    assert read(hub, WORDS)[0] == ["tokenizer.json=1"]
    hub.requests.clear()
    assert read(hub, WORDS)[0] == ["tokenizer.json=1"]
    assert len(hub.requests) == 1  # the request for the commit of the name
    hub.requests.clear()
    assert read(hub, f"model some/words@{next(iter(words.commits))} tokenizer.json")[0] == ["tokenizer.json=1"]
    assert not hub.requests


def test_a_name_that_has_moved_is_read_at_its_new_commit(hub, words):
    assert read(hub, WORDS)[0] == ["tokenizer.json=1"]
    words.commit({"tokenizer.json": "2"})
    assert read(hub, WORDS, "model some/words@v1 tokenizer.json")[0] == ["tokenizer.json=2", "tokenizer.json=1"]


def test_a_hub_that_is_away_is_one_sentence_and_the_cache_is_used(hub, words):
    read(hub, WORDS, "model some/words@v1 tokenizer.json")
    hub.close()
    printed, seconds, said = read(hub, WORDS, WORDS, "model some/words@v1 tokenizer.json")
    assert printed == ["tokenizer.json=1"] * 3 and seconds < 15  # the library tries for 23
    assert len(said) == 2 and said[0].startswith("The hub does not answer (")
    assert said[0].endswith("); using revision 'main' of some/words from the cache")
    assert said[1].endswith("; using revision 'v1' of some/words from the cache")
    assert read(hub, WORDS, HF_HUB_OFFLINE="1")[2] == []  # offline mode is intended, so there is no message


def test_without_hub_and_cache_it_is_said_at_once(hub, words):
    hub.close()
    commit = "0123456789" * 4
    printed, seconds, said = read(hub, WORDS, f"model some/words@{commit} model.safetensors")
    assert seconds < 15 and said == []
    assert "it does not answer, and the local cache has no revision 'main' of such a model; connect" in printed[0]
    assert "does not provide its model.safetensors at 012345678901: it does not answer, and the local" in printed[1]


def test_what_the_cache_lacks_is_fetched_when_the_hub_answers_and_named_when_not(hub):
    hub.model("some/model").commit({"config.json": "{}", "model.safetensors": "w", "large.bin": "x"})
    assert read(hub, "model some/model config.json")[0] == ["config.json={}"]
    wanted = "model some/model model.safetensors config.json"
    said = read(hub, wanted, HF_HUB_OFFLINE="1")[0][0]
    assert "HF_HUB_OFFLINE is set, and the local cache does not have all of it" in said
    assert read(hub, wanted)[0] == ["config.json={} model.safetensors=w"]
    assert read(hub, wanted, HF_HUB_OFFLINE="1")[0] == ["config.json={} model.safetensors=w"]


def test_a_cache_that_another_program_filled_is_used_where_the_hub_is_away(hub, words):
    """The cache has no list of the repository's files, so a hub that answers is asked for it."""
    load = "import huggingface_hub\nhuggingface_hub.hf_hub_download('some/words', 'tokenizer.json')"
    process(load, **hub.environment)
    hub.close()
    [commit] = words.commits  # no request was needed, so the hub is not known to be unreachable
    for name in ("some/words", f"some/words@{commit}"):
        assert read(hub, f"model {name} tokenizer.json config.json")[0] == ["tokenizer.json=1"]
    lacking = read(hub, f"model some/words@{'0123456789' * 4} tokenizer.json")[0][0]
    assert "does not provide its tokenizer.json at 012345678901: it does not answer" in lacking


@pytest.mark.parametrize("how", ["silent", "no name"])
def test_waiting_is_bounded_and_said(hub, words, how):
    """Neither a dead connection nor a DNS lookup without an answer blocks for long."""
    read(hub, WORDS)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = _HASTY
        if how == "no name":
            code = f"import socket, time\nsocket.getaddrinfo = lambda *_, **__: time.sleep(60)\n{_HASTY}"
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        done = process(code, WORDS, **{**hub.environment, "HF_ENDPOINT": endpoint})
    assert time.monotonic() - began < 40
    printed, seconds = done.stdout.splitlines()
    assert printed == "tokenizer.json=1" and float(seconds) < 15
    first, second = done.stderr.splitlines()
    assert first.startswith("Waiting up to ") and first.endswith("for the hub to name the commit of some/words")
    assert second.startswith("The hub does not answer (")


@pytest.mark.parametrize("status", [200, 404, 407, 500, 503])
def test_an_answer_of_another_server_is_no_answer(hub, words, status):
    """The answer is from a proxy, or from the login page of a guest network."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    read(hub, WORDS)
    stranger = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    Thread(target=stranger.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    printed, _, said = read(hub, WORDS, HF_ENDPOINT=f"http://127.0.0.1:{stranger.server_port}")
    stranger.shutdown()
    assert printed == ["tokenizer.json=1"] and len(said) == 1 and "The hub does not answer (" in said[0]


def test_a_data_set_is_asked_for_before_datasets_is(hub):
    hub.dataset("some/texts").commit({"train.jsonl": '{"text": "one"}\n', "card": "of two"})
    [commit] = hub.dataset("some/texts").commits
    assert process(_PLACE, **hub.environment).stdout == f"HubSource(name='some/texts', revision='{commit}')\n"
    offline = {**hub.environment, "HF_HUB_OFFLINE": "1"}
    load = "import huggingface_hub\nhuggingface_hub.hf_hub_download('some/texts', 'card', repo_type='dataset')"
    process(load, **hub.environment)  # a part of a data set is not used: text would be missing without a message
    refusal = process(_PLACE, **offline).stdout
    assert "does not provide its files at" in refusal
    assert "HF_HUB_OFFLINE is set, and the local cache does not have" in refusal
    process(_WHOLE, **hub.environment)
    assert f"datasets--some--texts/snapshots/{commit}', revision=None)" in process(_PLACE, **offline).stdout


def test_a_directory_is_its_own_place(tmp_path):
    assert local_files(str(tmp_path), "model", "it", ("config.json",)) == tmp_path


@pytest.fixture
def teacher(shape, tmp_path) -> Path:
    model = build_teacher(shape, SwitchConfig(), 64, 2, pad=0, eos=1, seed=0)
    save_teacher(model, tmp_path / "teacher")
    return tmp_path / "teacher"


def as_pickle(directory: Path, **changes: torch.Tensor) -> None:
    torch.save({**load_file(directory / "model.safetensors"), **changes}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def test_a_model_of_the_hub_gets_the_check_of_a_directory(hub, teacher):
    """This also holds if its weights are already in the cache. Without a hub it loads within seconds."""
    path = teacher / "model.safetensors"
    tensors, good = load_file(path), teacher.rename(teacher.with_name("good"))
    hub.model("some/good").commit(good)
    wrong = {
        "some/nan": {**tensors, "shared.weight": tensors["shared.weight"] * float("nan")},
        "some/missing": {name: value for name, value in tensors.items() if name != "shared.weight"},
        "some/more": {**tensors, "surprise": torch.zeros(1)},
    }
    for name, values in wrong.items():
        save_file(values, good / "model.safetensors", metadata={"format": "pt"})
        hub.model(name).commit(good)
    hub.model("some/t5").commit({"config.json": json.dumps({"model_type": "t5"}), "model.safetensors": "never read"})
    hub.model("some/flax").commit({"config.json": (good / "config.json").read_bytes(), "flax_model.msgpack": "x"})
    names = ["some/good", *wrong, "some/t5", "some/flax"]
    first = process(_LOAD, *names, **hub.environment).stdout.splitlines()[:-1]
    assert not [path for path in hub.requests if path.startswith("/some/t5/") and "safetensors" in path]
    hub.close()
    done = process(_LOAD, *names[:4], **hub.environment)
    *again, seconds = done.stdout.splitlines()
    assert again == first[:4] and float(seconds) < 20 and "Retrying" not in done.stderr
    good, nan, missing, more, t5, flax = first
    assert float(good) == pytest.approx(tensors["shared.weight"].sum().item(), abs=1e-4)
    assert nan.startswith("teacher 'some/nan' has weights in shared.weight that are NaN or infinite")
    assert "has 1 missing tensors for a Switch Transformer, such as shared.weight" in missing
    assert "has 1 unexpected tensors for a Switch Transformer, such as surprise" in more
    assert t5 == "teacher 'some/t5' is a t5 model; a Switch Transformer is needed"
    assert flax.startswith("teacher 'some/flax' has neither model.safetensors nor pytorch_model.bin on the hub")


def test_an_old_model_of_the_hub_is_a_pickle(hub, teacher):
    expected = load_file(teacher / "model.safetensors")["shared.weight"]
    as_pickle(teacher)
    hub.model("some/old").commit(teacher)
    tensors = torch.load(teacher / "pytorch_model.bin")
    torch.save({**tensors, "shared.weight": expected * float("inf")}, teacher / "pytorch_model.bin")
    hub.model("some/infinite").commit(teacher)
    good, infinite, _ = process(_LOAD, "some/old", "some/infinite", **hub.environment).stdout.splitlines()
    assert float(good) == pytest.approx(expected.sum().item(), abs=1e-4)
    assert infinite.startswith("teacher 'some/infinite' has weights in shared.weight that are NaN or infinite")
