"""Another version of transformers reads saved students and teachers. OTHER_TRANSFORMERS names its directory:

pip install --target DIR --no-deps transformers==4.57.6 'huggingface-hub<1' 'tokenizers<0.23'
OTHER_TRANSFORMERS=DIR python -m pytest -m slow tests/students/export/test_other_versions.py
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from teachers import save_teacher
from teachers.build import build_teacher
from teachers.config import TeacherConfig

OTHER = os.environ.get("OTHER_TRANSFORMERS")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not OTHER, reason="OTHER_TRANSFORMERS names no directory")]

READ = """
import json, sys, torch, transformers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
directory, text, target, lengths = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(directory)
model, report = AutoModelForSeq2SeqLM.from_pretrained(directory, output_loading_info=True)
inputs = tokenizer([text], return_tensors="pt")
logits = model.eval()(**inputs, labels=torch.tensor([target])).logits
answers = [model.generate(**inputs, min_new_tokens=n, do_sample=False)[0].tolist() for n in lengths]
print(json.dumps({
    "version": transformers.__version__, "missing": sorted(report["missing_keys"]), "ids": inputs.input_ids.tolist(),
    "text": tokenizer.batch_decode(inputs.input_ids), "logits": logits.tolist(), "answers": answers,
}))
"""
TEXT, TARGET = "the License <extra_id_0> shall , not . be <extra_id_1>", [40, 41, 42, 43, 1]


def read(directory, lengths, **environment):
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps([str(directory), TEXT, TARGET, lengths])],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compare(directory, lengths):
    ours, other = read(directory, lengths), read(directory, lengths, PYTHONPATH=OTHER)
    assert ours.pop("version") != other.pop("version")
    logits = [torch.tensor(one.pop("logits")) for one in (ours, other)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert ours == other and not ours["missing"]
    return ours


@pytest.mark.parametrize("kind", ["exported", "gated_exported"])
def test_transformers_of_another_version_reads_an_hf_export(kind, request):
    answers = compare(request.getfixturevalue(kind).directory("hf"), [1, 40])["answers"]
    assert len(answers[1]) > 40  # the default of transformers is 20


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_of_another_version_reads_a_teacher(tied, shape, data, tmp_path):
    shape = shape.model_copy(update={"tie_word_embeddings": tied})
    teacher = build_teacher(shape, TeacherConfig(experts=[4]), data.vocab_size, 4, pad=0, eos=1, seed=0)
    save_teacher(teacher, tmp_path, data.tokenizer)
    compare(tmp_path, [5])
    assert AutoTokenizer.from_pretrained(tmp_path).all_special_tokens == data.tokenizer.all_special_tokens
