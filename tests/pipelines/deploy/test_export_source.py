from pathlib import Path

import pytest

from distill.data.prepare import prepare_data
from distill.errors import UserError
from pipelines.deploy.export_source import Source, held_out_text


@pytest.mark.parametrize("part", ["test", "validation"])
def test_an_export_is_compared_on_the_text_that_its_student_was_evaluated_on(data_config, tmp_path, part):
    data = prepare_data(data_config.model_copy(update={"validation_fraction": 0.2}), tmp_path / "data")
    digest = data.parts[part].digest
    lineage = {"datasets": [{"digest": digest, "context": part}], "inputs": []}
    source = Source("student", Path(data.directory) / "tokenizer", None, lineage)
    text = held_out_text(source, tmp_path, None)
    assert (text.name, text.digest, text.split) == (f"{data.name}-{part}", digest, part)
    assert text.tokens.tolist() == data.tokens(part).tolist()


def test_missing_text_is_named(data_config, tmp_path):
    data = prepare_data(data_config, tmp_path / "data")
    lineage = {"datasets": [{"digest": "abc", "context": "test"}], "inputs": []}
    with pytest.raises(UserError, match=r"student \(digest abc\) is not in"):
        held_out_text(Source("student", Path(data.directory) / "tokenizer", None, lineage), tmp_path, None)
