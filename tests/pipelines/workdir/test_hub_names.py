"""All processes of a run use the same commit of a name on the hub, also if the name moves in between."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from threading import Thread
from types import SimpleNamespace as Values

import yaml

from pipelines.config.run_config import load_config
from pipelines.runner import side_by_side
from pipelines.workdir.hub_names import names_on_hub
from tests.forked import Forked
from tests.hub import python, start

_ASK = "from distill.io.hub import resolve_revision\nprint(resolve_revision('some/model', 'model', 'it'))"
_COMMITS_ENVIRONMENT = (
    f"{_ASK}\nimport json\nfrom distill.io.hub import commits_environment\nprint(json.dumps(commits_environment()))"
)
_SHARE = """
import json, sys
from accelerate import Accelerator
from distill.errors import ExpectedError
from distill.io.hub import known_commits
from pipelines.workdir.hub_names import share_commits
try:
    share_commits([(source, "model", source) for source in sys.argv[1:]], Accelerator(cpu=True))
    print(json.dumps(known_commits()))
except ExpectedError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_the_names_of_a_config(tmp_path):
    overrides = [
        "data.corpus=hf:some/texts@v1:en",
        "data.tokenizer=some/words",
        "teacher.experts=[2]",
        f"teacher.checkpoints={{e4: some/switch, e8: {tmp_path}}}",
        "baseline.checkpoint=some/t5@v2",
    ]
    names = names_on_hub(load_config("smoke", overrides))
    assert [(source, kind) for source, kind, _ in names] == [
        ("some/texts@v1", "dataset"),
        ("some/words", "model"),
        ("some/t5@v2", "model"),
        ("some/switch", "model"),
    ]
    assert names[2][2] == "baseline.checkpoint 'some/t5@v2'"
    assert names_on_hub(load_config("smoke", [])) == []


def test_the_names_of_a_pretraining_are_those_of_the_config_too(tmp_path):
    """Also of a pre-training that is fine-tuned itself."""
    configs = {
        "text": {"preset": "smoke", "data": {"corpus": "hf:some/texts:en"}},
        "translation": {"preset": "smoke", "pretrained": "text", "task": {"examples": "hf:some/pairs"}},
        "names": {"preset": "smoke", "pretrained": "translation", "task": {"examples": "hf:some/names@v1"}},
    }
    for name, values in configs.items():
        if "task" in values:
            values["pretrained"] = str(tmp_path / f"{values['pretrained']}.yaml")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    found = names_on_hub(load_config(str(tmp_path / "names.yaml")))
    assert [(source, kind) for source, kind, _ in found] == [
        ("some/names@v1", "dataset"),
        ("some/pairs", "dataset"),
        ("some/texts", "dataset"),
    ]


def test_a_child_takes_the_commit_of_its_parent(hub):
    first = hub.model("some/model").commit({"config.json": "{}"})
    printed, variables = python(_COMMITS_ENVIRONMENT, **hub.environment).splitlines()
    assert printed == first
    second = hub.model("some/model").commit({"config.json": "[]"})
    hub.requests.clear()
    assert python(_ASK, **hub.environment, **json.loads(variables)).strip() == first
    assert not hub.requests
    assert python(_ASK, **hub.environment).strip() == second


def test_parallel_chains_get_the_commits(monkeypatch, tmp_path):
    given = []

    def start(command, environment, workspace):
        given.append(environment)
        child = subprocess.Popen([sys.executable, "-c", ""])
        relay = Thread(target=child.wait)
        relay.start()
        return child, relay

    monkeypatch.setattr("distill.io.hub._known", {"model some/model main": "1" * 40})
    monkeypatch.setattr(side_by_side, "_commands", lambda workspace: [["baseline"], ["run"]])
    monkeypatch.setattr(side_by_side, "check_space", lambda *_: None)
    monkeypatch.setattr(side_by_side, "_start", start)
    workspace = Values(config=Values(jobs=2), stages=[], directory=tmp_path)
    runner = Values(workspace=workspace, publisher=Values(store=Values(experiment="1")))
    assert side_by_side.run_side_by_side(runner, [])
    variables = [json.loads(environment["SWITCH_DISTILL_COMMITS"]) for environment in given]
    assert variables == [{"model some/model main": "1" * 40}] * 2


def ranks(hub, *names: str, other: Path) -> list[Forked]:
    """Run two processes. The second has an unreachable hub and an empty cache."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    common = {**hub.environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    away = {"HF_ENDPOINT": f"http://127.0.0.1:{port + 1}", "HF_HOME": str(other)}
    return [
        start(_SHARE, *names, **{**common, "RANK": str(rank), "LOCAL_RANK": str(rank), **(away if rank else {})})
        for rank in range(2)
    ]


def test_all_processes_use_the_commits_of_the_main_process(hub, tmp_path):
    commit = hub.model("some/model").commit({"config.json": "{}"}, "main", "v1")
    started = ranks(hub, "some/model", "some/model@v1", other=tmp_path / "other")
    printed = [process.communicate() for process in started]
    known = {"model some/model main": commit, "model some/model v1": commit}
    assert [json.loads(out) for out, _ in printed] == [known, known], printed


def test_all_processes_end_if_the_main_process_finds_no_such_name(hub, tmp_path):
    started = ranks(hub, "nobody/nothing", other=tmp_path / "other")
    first, second = (process.communicate()[1] for process in started)
    assert first.splitlines()[-1].startswith(
        "UserError: nobody/nothing is not a directory, and the hub has no model of"
    )
    assert second.splitlines()[-1].startswith("LostProcess: another process of this run has ended")
