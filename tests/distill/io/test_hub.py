"""Names on the hub, pinned or not: the commits that they refer to, and loading at these commits."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file

from distill.errors import UserError
from distill.io.hub import HubSource, at_revision, resolve_revision, split_revision
from distill.models.build import build_dense
from teachers import load_teacher, save_teacher
from teachers.build import build_teacher
from teachers.config import TeacherConfig
from tests.hub import Hub, python

_ASK = """
import json, sys
from distill.errors import UserError
from distill.io.hub import resolve_revision
for argument in sys.argv[1:]:
    kind, _, source = argument.rpartition(" ")
    try:
        print(resolve_revision(source, kind or "model", f"teacher {source!r}"))
    except UserError as error:
        print(error)
"""
_LOAD_TEACHER = """
import sys
from safetensors.torch import save_file
from distill.models.directory import read_model_config
from teachers import load_teacher
for number, source in enumerate(sys.argv[2:]):
    model = load_teacher(source)
    save_file({"shared": model.shared.weight.data.clone()}, f"{sys.argv[1]}/{number}.safetensors")
    print(model.config.note, read_model_config(source, "the teacher")["note"], sep=", ")
"""
_LOAD_BASELINE = """
import sys
from types import SimpleNamespace as Values
from pipelines.stages.baseline import _model
for source in sys.argv[1:]:
    config = Values(baseline=Values(checkpoint=source), teacher=Values(checkpoints={}))
    model = _model(Values(config=config, data=Values(special_tokens=Values(vocabulary_size=64))))
    print(model.shared.weight.sum().item(), model.config.note)
"""
_LOAD_DATA = """
import sys
from distill.data.hub_rows import hub_rows
from distill.io.hub import resolve_revision
for corpus in sys.argv[1:]:
    commit = resolve_revision(corpus.removeprefix("hf:").partition(":")[0], "dataset", "data.corpus")
    print(*(row.values["text"] for row in hub_rows(corpus, commit, ["text"])), sep=", ")
"""
_LOAD_TOKENIZER = """
import sys, transformers
from distill.io.hub import at_revision
name, commit = at_revision(sys.argv[1], "model", "tokenizer")
print(transformers.AutoTokenizer.from_pretrained(name, revision=commit).tokenize("a word"))
"""


def ask(hub: Hub, *sources: str, **environment: str) -> list[str]:
    """The commit of each source, or the message to the user, from one process."""
    return python(_ASK, *sources, **{**hub.environment, **environment}).splitlines()


def test_a_name_is_split_at_its_revision_and_a_directory_never(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine@home").mkdir()
    assert split_revision("mine@home") == HubSource("mine@home", None)
    assert split_revision("mine@work") == HubSource("mine", "work")
    assert split_revision("a/b") == HubSource("a/b", None)
    assert split_revision("a/b@refs/pr/1") == HubSource("a/b", "refs/pr/1")
    assert at_revision("mine@home", "model", "it") == HubSource("mine@home", None)


def test_a_directory_has_no_revision_and_cannot_be_pinned(tmp_path):
    assert resolve_revision(str(tmp_path), "model", "the teacher") is None
    with pytest.raises(UserError, match="the teacher is a directory, which has no revisions; omit @main"):
        resolve_revision(f"{tmp_path}@main", "model", "the teacher")


@pytest.mark.parametrize("revision", ["", "../../other/refs/main", "/etc/passwd", "a b", "a\nb", "x" * 5 + ":y"])
def test_what_can_be_no_revision_is_refused(revision):
    with pytest.raises(UserError, match="is pinned to .*, which is not a revision; name a branch, a tag or a commit"):
        resolve_revision(f"some/model@{revision}", "model", "the teacher")


@pytest.mark.parametrize(
    "source", ["/no/such/place", "a/b/c", "../../x", "a/b/c@main", "a:b", "a..b", "x" * 5000, "@v1"]
)
def test_what_can_be_no_name_is_refused(source):
    with pytest.raises(UserError, match="the teacher is not a directory, and not a name on the hub either; check the"):
        resolve_revision(source, "model", "the teacher")


def test_main_stands_for_the_commit_that_it_is_at(hub):
    model, data = hub.model("some/model"), hub.dataset("some/model")
    first, other = model.commit({"config.json": "{}"}, "main", "v1", "refs/pr/1"), data.commit({"a.jsonl": ""})
    sources = ["some/model", "some/model@v1", "some/model@refs/pr/1", "dataset some/model"]
    assert ask(hub, *sources) == [first, first, first, other]
    second = model.commit({"config.json": "{}"})
    assert ask(hub, *sources) == [second, first, first, other] and len({first, second, other}) == 3


def test_a_whole_commit_is_not_asked_for(hub):
    commit = hub.model("some/model").commit({"config.json": "{}"})
    assert ask(hub, f"some/model@{commit}", f"dataset nobody/nothing@{commit}") == [commit, commit]
    assert not hub.requests


def test_the_hub_is_asked_once_per_process(hub):
    commit = hub.model("some/model").commit({"config.json": "{}"})
    assert ask(hub, *["some/model"] * 3, "some/model@main") == [commit] * 4
    assert len(hub.requests) == 1


def test_a_name_or_a_revision_that_is_not_there_is_named(hub):
    hub.model("some/model").commit({"config.json": "{}"})
    name, data, revision = ask(hub, "nobody/nothing", "dataset some/model", "some/model@v9")
    assert name.startswith("teacher 'nobody/nothing' is not a directory, and the hub has no model of that name; ")
    assert "the hub has no data set of that name" in data
    assert revision.endswith("the hub has no revision 'v9' of it; pin one that exists, or omit it")


@pytest.mark.parametrize("how", ["offline", "away"])
def test_without_the_hub_the_cache_says_which_commit(hub, how):
    """This also holds for a revision that has moved since."""
    model = hub.model("some/model")
    first = model.commit({"config.json": "{}"}, "main", "v1")
    assert ask(hub, "some/model") == [first]
    model.commit({"config.json": "{}"})
    if how == "away":
        hub.close()
    state, environment = {"offline": ("HF_HUB_OFFLINE is set", "1"), "away": ("it does not answer", "0")}[how]
    known, tag, unknown = ask(hub, "some/model", "some/model@v1", "a/b", HF_HUB_OFFLINE=environment)
    assert known == first
    for message, revision in ((tag, "v1"), (unknown, "main")):
        assert f"the hub does not provide it: {state}, and the local cache has no revision '{revision}'" in message
        assert message.endswith("connect, or check the name and pin a revision that was loaded here before")


def test_a_hub_that_never_answers_is_not_waited_for(hub):
    """The connection is dead, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {**hub.environment, "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        code = f"import distill.io.hub_answers\ndistill.io.hub_answers._ANSWER_SECONDS = 0.2\n{_ASK}"
        message = python(code, "some/model", **environment)
    assert "the hub does not provide it: it does not answer, and the local cache has no revision 'main'" in message


def test_a_damaged_cache_is_named(hub, tmp_path):
    reference = tmp_path / "huggingface" / "hub" / "models--some--model" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("half")
    message = ask(hub, "some/model", HF_HUB_OFFLINE="1")[0]
    assert message.endswith("has a damaged entry for 'main' in the hub's cache; delete it, or connect")


@pytest.fixture
def teachers(shape, tmp_path):
    """Two directories of small teachers with different weights and a different note in the config."""
    for seed in range(2):
        directory = tmp_path / f"teacher{seed}"
        save_teacher(build_teacher(shape, TeacherConfig(experts=[2]), 64, 2, pad=0, eos=1, seed=seed), directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "note": f"note {seed}"}))
    return [tmp_path / "teacher0", tmp_path / "teacher1"]


def test_a_teacher_is_loaded_at_its_revision(hub, teachers, tmp_path):
    """Both weights and config, for a pinned and an unpinned name; then again without the hub."""
    model = hub.model("some/switch")
    first, second = (model.commit(directory, "main", f"v{n}") for n, directory in enumerate(teachers))
    sources = ["some/switch", "some/switch@v0", f"some/switch@{first}", f"some/switch@{second}"]
    expected = ["note 1", "note 0", "note 0", "note 1"]
    out = tmp_path / "out"
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        out.mkdir()
        printed = python(_LOAD_TEACHER, str(out), *sources, **{**hub.environment, **environment})
        assert printed.splitlines() == [f"{note}, {note}" for note in expected]
        for number, note in enumerate(expected):
            found = load_file(out / f"{number}.safetensors")["shared"]
            torch.testing.assert_close(found, load_teacher(teachers[int(note[-1])]).shared.weight.data)
        shutil.rmtree(out)


@pytest.mark.slow  # by the same functions as the teacher above
def test_a_baseline_is_loaded_at_its_revision(hub, shape, tmp_path):
    repository, expected = hub.model("some/t5"), []
    for seed in range(2):
        model = build_dense(shape, 64, pad=0, eos=1, seed=seed)
        model.config.note = f"note {seed}"
        model.save_pretrained(tmp_path / str(seed))
        repository.commit(tmp_path / str(seed), "main", f"v{seed}")
        expected.append(f"{model.shared.weight.sum().item()} note {seed}")
    printed = python(_LOAD_BASELINE, "some/t5@v0", "some/t5", str(tmp_path / "0"), **hub.environment)
    assert printed.splitlines() == [expected[0], expected[1], expected[0]]


def test_a_data_set_is_streamed_at_its_revision(hub):
    """With the configs of its card, and files of two formats."""
    card = (
        "---\nconfigs:\n- config_name: en\n  data_files: en/*.jsonl\n- config_name: de\n  data_files: de/*.jsonl\n---\n"
    )
    data = hub.dataset("some/texts")
    for number in range(2):
        rows = {name: f'{{"text": "{name} {number}"}}\n' for name in ("en", "de")}
        data.commit({"README.md": card, **{f"{name}/a.jsonl": row for name, row in rows.items()}}, "main", f"v{number}")
    hub.dataset("some/plain").commit({"train.jsonl": '{"text": "one"}\n{"text": "two"}\n'})
    corpora = ["hf:some/texts:en", "hf:some/texts@v0:de", "hf:some/plain"]
    assert python(_LOAD_DATA, *corpora, **hub.environment).splitlines() == ["en 1", "de 0", "one, two"]


def test_a_tokenizer_is_loaded_at_its_revision(hub, data, tmp_path):
    repository = hub.model("some/words")
    data.tokenizer.save_pretrained(tmp_path / "words")
    repository.commit(tmp_path / "words", "v0")
    repository.commit({"README.md": "not yet"})
    expected = f"{data.tokenizer.tokenize('a word')}\n"
    assert python(_LOAD_TOKENIZER, "some/words@v0", **hub.environment) == expected
