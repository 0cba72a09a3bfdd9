import json

from pipelines.deploy.teacher_runner import TeacherRunner
from teachers import save_teacher
from teachers.build import build_teacher
from teachers.config import TeacherConfig


def test_a_teacher_without_a_start_token_in_its_config_gives_answers(data, shape, tmp_path):
    """Many configs of transformers have none. Answers then start with pad."""
    save_teacher(
        build_teacher(shape, TeacherConfig(experts=[2]), 512, 2, pad=0, eos=1, seed=0), tmp_path, data.tokenizer
    )
    inputs = [[7, 8, 9, 1], [10, 11, 1]]
    expected = TeacherRunner(tmp_path).generate(inputs, [6, 6])
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / name).read_text())
        assert values.pop("decoder_start_token_id") == 0
        (tmp_path / name).write_text(json.dumps(values))
    assert TeacherRunner(tmp_path).generate(inputs, [6, 6]) == expected
