import json

import numpy as np

from distill.generation import generate
from pipelines.deploy.teacher_runner import TeacherRunner
from teachers import load_teacher, save_teacher
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


def test_an_answer_does_not_depend_on_the_other_prompts_of_a_batch(data, shape, tmp_path):
    """All tokens of an input go to one of many experts, so a limited capacity would drop most of them."""
    teacher = build_teacher(shape, TeacherConfig(experts=[8]), 512, 8, pad=0, eos=1, seed=0)
    save_teacher(teacher, tmp_path, data.tokenizer)
    runner, inputs, targets = TeacherRunner(tmp_path), [[7] * 20, [7] * 20 + [1], [9, 8, 1]], [[5, 6, 1]] * 3
    alone = [runner.score([row], [target])[0] for row, target in zip(inputs, targets, strict=True)]
    np.testing.assert_allclose(runner.score(inputs, targets), alone, atol=1e-5)
    answers = [[id_ for id_ in row if id_ > 1] for row in runner.generate(inputs, [6] * 3)]
    assert answers == generate(load_teacher(tmp_path), inputs, max_length=6, batch_size=3)
