import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.config import LabelsConfig, TrainingConfig
from distill.data.cached_labels import CachedLabels, LabelledExamples
from distill.data.examples import Batch, Examples
from distill.data.make_labels import make_labels
from distill.data.prepared_data import Lengths
from distill.errors import DiskFull, UserError
from distill.models.build import build_dense
from distill.training.loop import Hooks, make_accelerator, train
from distill.training.train_modules import HardAndCachedLabels, HardAndSoftLabels

FILES = {"top_k": ["entropy.npy", "probs.npy", "words.npy"], "sampled": ["entropy.npy", "words.npy"]}


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("float32")


@pytest.fixture
def teacher(shape, data):
    return build_dense(shape.model_copy(update={"dropout": 0.5}), data.vocab_size, pad=0, eos=1, seed=3).train()


@pytest.fixture
def examples(data, data_config):
    return Examples(data, data_config, seed=5)


@pytest.fixture
def label(teacher, examples, accelerator, tmp_path):
    """Make labels in a directory with this name; other arguments go to make_labels and LabelsConfig."""

    def make(name="labels", *, form="top_k", num_tokens=4, count=11, model=teacher, temperature=1.0, **arguments):
        make_labels(
            model,
            arguments.pop("examples", examples),
            LabelsConfig(form=form, num_tokens=num_tokens, seed=5),
            tmp_path / name,
            count=count,
            temperature=temperature,
            batch_size=arguments.pop("batch_size", 4),
            accelerator=accelerator,
            progress=tmp_path / f"{name}.progress.json",
            **{"origin": {"teacher": "t", "data": "d"}, **arguments},
        )
        return tmp_path / name

    return make


class Ragged:
    """Examples of 1 to 9 inputs and 1 to 6 targets, padded to the longest of their batch."""

    lengths, target_tokens = Lengths(9, 6), None

    def __len__(self):
        return 1000

    def tokens(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((7, index))
        parts = (rng.integers(2, 200, rng.integers(1, longest + 1)) for longest in self.lengths)
        inputs, targets = map(torch.from_numpy, parts)
        return inputs, targets

    def batch(self, indices) -> Batch:
        inputs, targets = zip(*map(self.tokens, indices), strict=True)
        pad = torch.nn.utils.rnn.pad_sequence
        return Batch(pad(inputs, batch_first=True), pad(targets, batch_first=True, padding_value=-100))


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_top_k_labels_are_those_of_the_teachers_logits_example_by_example(label, teacher, examples):
    labels = CachedLabels(label(temperature=2.0))
    assert len(labels) == 11
    for index in (10, 0, 13):  # the last index is taken modulo the number of labels: it is example 2
        batch = examples.batch([index % 11])
        with torch.no_grad():
            logits = teacher.eval()(**batch._asdict()).logits[0]
        probs, token_ids = (logits / 2.0).softmax(-1).topk(4)
        read = labels.batch([index])
        assert torch.equal(read.token_ids, token_ids) and read.token_ids.dtype == torch.int64
        torch.testing.assert_close(read.probs, probs, rtol=1e-3, atol=1e-5)
        classes = torch.cat([probs, 1 - probs.sum(-1, keepdim=True)], -1)
        torch.testing.assert_close(read.entropy, -(classes * classes.log()).sum(-1), rtol=2e-3, atol=2e-3)
    together = labels.batch([10, 0, 13])
    assert torch.equal(together.token_ids, torch.cat([labels.batch([i]).token_ids for i in (10, 0, 2)]))


def test_sampled_labels_are_draws_from_the_teacher(label, teacher, examples):
    """Both forms, from one teacher: a token of probability 1/K or more is always drawn, at varying positions."""
    labels = CachedLabels(label(form="sampled", num_tokens=64))
    with torch.no_grad():
        probs = teacher.eval()(**examples.batch(range(11))._asdict()).logits.flatten(0, 1).softmax(-1)
    read = labels.batch(range(11))
    drawn = torch.stack([torch.bincount(row, minlength=probs.shape[-1]) for row in read.token_ids])
    assert ((drawn - 64 * probs).abs() < 1 + 1e-3).all()
    error = (drawn / 64 - probs).sum(0)  # over all tokens; a common offset would increase it
    assert error.abs().max() < 4 * (len(probs) / 4) ** 0.5 / 64
    torch.testing.assert_close(read.entropy, -(probs * probs.log()).sum(-1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("form,size", [("top_k", 4 * 4 + 2), ("sampled", 2 * 4 + 2)])
def test_files_say_what_they_are(label, form, size, examples):
    directory = label(form=form)
    labels = CachedLabels(directory)
    assert sorted(path.name for path in directory.iterdir()) == sorted([*FILES[form], "labels.json"])
    tokens = 11 * examples.lengths.targets
    sizes = [(directory / name).stat().st_size for name in FILES[form]]
    assert labels.bytes_per_token == size and sum(sizes) == pytest.approx(size * tokens, abs=128 * len(sizes))
    facts = json.loads((directory / "labels.json").read_text())
    assert facts == {**labels.facts, "checksum": facts["checksum"]} and sorted(facts["sha256"]) == FILES[form]
    assert (facts["form"], facts["words"], facts["seed"], facts["teacher"], facts["data"]) == (form, 4, 5, "t", "d")
    means = labels.means()
    whole = labels.batch(range(11))
    assert means["entropy"] == pytest.approx(float(whole.entropy.mean()), rel=1e-5)
    assert means["mass"] == pytest.approx(float(whole.probs.sum(-1).mean()), rel=1e-5)


@pytest.mark.parametrize("form", FILES)
def test_labels_of_targets_of_differing_length_are_those_of_each_example_alone(label, form):
    together, alone = (
        CachedLabels(label(f"{form} {size}", form=form, examples=Ragged(), batch_size=size)) for size in (4, 1)
    )
    entropies, mass = [], []
    for index in range(11):
        length = len(Ragged().tokens(index)[1])
        mine, expected = together.batch([index], length), alone.batch([index], length)
        assert torch.equal(mine.token_ids, expected.token_ids)
        torch.testing.assert_close(mine.probs, expected.probs, rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(mine.entropy, expected.entropy, rtol=2e-3, atol=2e-3)
        padding = [part.view(6, -1)[length:] for part in together.batch([index])]
        assert not padding[0].any() and (padding[2] == -1).all()
        entropies += mine.entropy.tolist()
        mass += mine.probs.sum(-1).tolist()
    means = together.means()
    assert means["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert means["mass"] == pytest.approx(np.mean(mass), rel=1e-5)


def test_batches_of_targets_of_differing_length_have_labels_for_each_position(label, shape, data, teacher):
    """With K = the vocabulary size, the loss equals that of online labels except for float16."""
    labels = CachedLabels(label(num_tokens=data.vocab_size, examples=Ragged(), count=12, temperature=1.5))
    student = build_dense(shape, data.vocab_size, pad=0, eos=1, seed=1)
    mix = {"hard_fraction": 0.5, "temperature": 1.5}
    shapes = set()
    for rows in ([0, 1, 2, 3], [9, 3], [11, 12, 13]):
        batch = LabelledExamples(Ragged(), labels).batch(rows)
        assert len(batch.soft_labels.entropy) == batch.labels.numel()
        shapes.add(batch.labels.shape[1])
        _, cached = HardAndCachedLabels(student, **mix)(*batch)
        _, online = HardAndSoftLabels(student, teacher, **mix)(batch.input_ids, batch.labels)
        for name, value in online.items():
            torch.testing.assert_close(cached[name], value, rtol=2e-3, atol=5e-3)
    assert len(shapes) > 1


def test_speed_counts_tokens_without_padding(label, monkeypatch):
    seconds = iter([0.0, *[2.0] * 10])
    monkeypatch.setattr("distill.data.make_labels.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    seen = []
    label(examples=Ragged(), count=8, on_batch=lambda done, count, metrics: seen.append(metrics["tokens_per_second"]))
    counts = [sum(map(len, Ragged().tokens(index))) for index in range(8)]
    assert seen == pytest.approx([sum(counts[:4]) / 2, sum(counts) / 2])


def test_a_large_vocabulary_gets_wider_ids(label, shape):
    large = build_dense(shape, 70_016, pad=0, eos=1, seed=0)
    assert CachedLabels(label("large", model=large, form="sampled", count=2)).bytes_per_token == 4 * 4 + 2
    assert np.load(label("large", model=large, form="sampled", count=2) / "words.npy").dtype == np.uint32


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize("kill_at", [4, 24, 44])
def test_killed_labelling_resumes_and_writes_the_same_bytes(label, monkeypatch, form, kill_at):
    monkeypatch.setattr("distill.data.make_labels._BATCHES_PER_UNIT", 2)
    straight = bytes_of(label("straight", form=form, count=47))

    class Killed(Exception):
        pass

    def die(done, count, metrics):
        if done == kill_at:
            raise Killed

    with pytest.raises(Killed):
        label("killed", form=form, count=47, on_batch=die)
    seen = []
    resumed = label("killed", form=form, count=47, on_batch=lambda done, count, metrics: seen.append(done))
    assert bytes_of(resumed) == straight
    saved = (kill_at - 4) // 8 * 8  # two batches of four examples at a time
    assert seen == [*range(saved + 4, 47, 4), 47]


def test_labels_of_other_settings_are_not_resumed(label):
    first = bytes_of(label(origin={"teacher": "t"}))
    again = []
    second = label(origin={"teacher": "another"}, on_batch=lambda *facts: again.append(facts))
    assert len(again) == 3 and bytes_of(second)["words.npy"] == first["words.npy"]


def test_the_number_of_examples_changes_no_label(label):
    few, many = (CachedLabels(label(str(count), form="sampled", count=count)).batch(range(5)) for count in (5, 12))
    assert all(torch.equal(a, b) for a, b in zip(few, many, strict=True))


def test_changed_or_missing_files_are_named_with_the_cure(label):
    directory = label()
    whole = (directory / "probs.npy").read_bytes()
    for broken in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-8]):
        (directory / "probs.npy").write_bytes(broken)
        with pytest.raises(UserError, match=r"probs.npy is damaged: .* as written; .*switch-distill label"):
            CachedLabels(directory)
    for name in ("words.npy", "labels.json"):
        (directory / "probs.npy").write_bytes(whole)
        (directory / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing.*switch-distill label"):
            CachedLabels(directory)
    (directory / "labels.json").write_text('{"form": ')
    with pytest.raises(UserError, match="labels.json is damaged.*switch-distill label"):
        CachedLabels(directory)


def test_labels_that_do_not_fit_the_disk_are_refused(label, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(DiskFull, match="storing soft labels needs about .* lower distill.labels.num_tokens"):
        label()
    assert not list((tmp_path / "labels").iterdir())


def test_a_disk_that_fills_up_beside_the_labels_is_found_before_the_first_one(label, monkeypatch, small_disk):
    disk = small_disk(40_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**9))  # as in an outdated check
    seen = []
    with pytest.raises(DiskFull, match=r"labels cannot be written, the disk is full: it needs \d+"):
        label(disk / "labels", count=2000, on_batch=lambda *facts: seen.append(facts))
    assert not seen and not list((disk / "labels").iterdir())
    assert len(CachedLabels(label(disk / "labels", count=11))) == 11


@pytest.mark.parametrize("broken", ["words.npy", "progress"])
def test_half_made_labels_that_are_damaged_are_made_again(label, monkeypatch, tmp_path, broken):
    monkeypatch.setattr("distill.data.make_labels._BATCHES_PER_UNIT", 2)
    straight = bytes_of(label("straight", count=47))

    def die(done, count, metrics):
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label("killed", count=47, on_batch=die)
    path = tmp_path / ("killed.progress.json" if broken == "progress" else f"killed/{broken}")
    path.write_bytes(path.read_bytes()[:-10])
    assert bytes_of(label("killed", count=47)) == straight


def test_labelled_examples_are_the_examples_and_repeat(label, examples):
    labels = CachedLabels(label())
    batch = LabelledExamples(examples, labels).batch([9, 10, 11, 12]).to(torch.device("cpu"))
    plain = examples.batch([9, 10, 0, 1])
    assert torch.equal(batch.input_ids, plain.input_ids) and torch.equal(batch.labels, plain.labels)
    assert torch.equal(batch.soft_labels.token_ids, labels.batch([9, 10, 0, 1]).token_ids)


def test_a_student_learns_from_the_disk_what_it_learns_from_the_teacher(
    label, teacher, shape, data, examples, accelerator, tmp_path
):
    """With K = the vocabulary size, cached labels equal the online ones except for float16."""
    config = TrainingConfig(steps=3, batch_size=4, learning_rate=1e-2, warmup_steps=1, log_every=1)
    mix = {"hard_fraction": 0.5, "temperature": 1.5}
    labelled = LabelledExamples(examples, CachedLabels(label(num_tokens=data.vocab_size, count=12, temperature=1.5)))
    curves = []
    for name in ("online", "cached"):
        student, seen = build_dense(shape, data.vocab_size, pad=0, eos=1, seed=1), []
        cached = HardAndCachedLabels(student, **mix)
        train(
            HardAndSoftLabels(student, teacher, **mix) if name == "online" else cached,
            examples if name == "online" else labelled,
            config,
            accelerator=accelerator,
            directory=tmp_path / name,
            seed=0,
            hooks=Hooks(on_metrics=lambda step, metrics, seen=seen: seen.append(metrics)),
        )
        curves.append([[step[key] for key in ("loss", "hard_loss", "soft_loss", "kl")] for step in seen])
    np.testing.assert_allclose(*curves, rtol=2e-3, atol=5e-3)


def test_a_call_that_helps_after_the_end_changes_nothing_and_leaves_no_directory(label, tmp_path):
    label()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    label(lead=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.rglob("*.units"))
