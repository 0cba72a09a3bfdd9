import os

import pytest

from distill.errors import UserError
from pipelines.cli import app


@pytest.mark.parametrize("asked,used", [(None, "passive"), ("active", "active")])
def test_threads_of_stages_wait_without_a_core_unless_the_user_decides(asked, used, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if asked:
        monkeypatch.setenv("OMP_WAIT_POLICY", asked)
    with pytest.raises(UserError, match="--ratio is 'e99'"):
        app._runner("smoke", None, tmp_path, None, ratio="e99")
    assert os.environ["OMP_WAIT_POLICY"] == used
