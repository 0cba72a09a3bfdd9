import pytest
import yaml
from rich.console import Console

from distill.errors import UserError
from pipelines.config.run_config import load_config
from pipelines.workdir import workspace as workspace_module
from pipelines.workdir.workspace import Workspace


@pytest.fixture
def config(data_config, tmp_path) -> str:
    """A config of small models on the shared corpus of text files."""
    path = tmp_path / "tiny.yaml"
    data = data_config.model_dump(mode="json")
    path.write_text(yaml.safe_dump({"preset": "smoke", "data": {**data, "train_tokens": None}}))
    return str(path)


def test_the_plan_is_made_once(config, tmp_path, monkeypatch):
    plans, plan = [], workspace_module.plan
    monkeypatch.setattr(workspace_module, "plan", lambda *arguments: plans.append(arguments) or plan(*arguments))
    for _ in range(2):  # with data to prepare, and with prepared data
        plans.clear()
        workspace = Workspace(load_config(config), config, tmp_path / "work", Console(quiet=True))
        assert len(plans) == 1 and plans[0][1] == workspace.data.fingerprint
        assert workspace.stages[-1].kind == "report"


def test_a_missing_input_is_named_with_its_command_before_data_is_prepared(config, tmp_path):
    with pytest.raises(UserError, match="teacher e2 is missing in .*: switch-distill teacher .* --ratio e2"):
        Workspace(load_config(config), config, tmp_path / "work", Console(quiet=True), kind="init")
    with pytest.raises(UserError, match="teacher e4 is missing in .* --ratio e4"):
        Workspace(load_config(config), config, tmp_path / "work", Console(quiet=True), kind="init", ratio="e4")
    assert not (tmp_path / "work").exists()
