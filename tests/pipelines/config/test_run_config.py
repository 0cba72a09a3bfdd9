import re

import pytest
import yaml

from distill.errors import UserError
from distill.io.hub import HubSource, split_revision
from distill.span_corruption import raw_length_for
from distill.training import precision
from pipelines.config.presets import PRESETS
from pipelines.config.run_config import RunConfig, load_config
from pipelines.workdir import plan as plan_module
from pipelines.workdir.plan import plan
from pipelines.workdir.stage import VERSIONS


@pytest.fixture(autouse=True)
def commits(monkeypatch) -> dict[str, str]:
    """Commits of names on the hub. A name without a revision has the commit ``commits["main"]``."""
    known = {"main": "a" * 40}

    def at_revision(source, kind, description):
        name, revision = split_revision(source)
        return HubSource(name, known.get(revision or "main", revision))

    monkeypatch.setattr(plan_module, "at_revision", at_revision)
    return known


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_described(name):
    config = load_config(name)
    assert config.name == name and PRESETS[name].__doc__
    assert plan(config, "data")


@pytest.mark.parametrize("name", PRESETS)
def test_the_corpus_of_a_preset_has_enough_test_examples(name):
    config = load_config(name)
    data = config.data
    if data.train_tokens and config.task is None:
        held_out = data.train_tokens * data.test_fraction / (1 - data.test_fraction)
        assert held_out > 1.3 * data.test_examples * raw_length_for(data.input_length)


@pytest.mark.parametrize("name", ["switch-base", "switch-base-all"])
def test_the_public_checkpoints_are_pinned_to_commits(name):
    config = load_config(name)
    sources = [*config.teacher.checkpoints.values(), config.baseline.checkpoint, config.data.tokenizer]
    sources.append(config.data.corpus.removeprefix("hf:").removesuffix(":en"))
    commits = {split_revision(source) for source in sources}
    assert all(re.fullmatch("[0-9a-f]{40}", commit.revision) for commit in commits)
    assert len({commit.revision for commit in commits}) == len({commit.name for commit in commits})
    experts = [8] if name == "switch-base" else [8, 16, 32, 64, 128]
    assert config.teacher.ratios == {f"e{number}": number for number in experts}
    for ratio, source in config.teacher.checkpoints.items():
        assert split_revision(source).name == f"google/switch-base-{ratio[1:]}"
    assert config.data.tokenizer == config.teacher.checkpoints["e8"]


def test_a_run_of_all_public_checkpoints_reuses_the_stages_of_the_first():
    one, every = (plan(load_config(name), "data") for name in ("switch-base", "switch-base-all"))
    assert {stage.fingerprint for stage in one[:-1]} < {stage.fingerprint for stage in every}


RECIPE = [
    "student={ffn_init: regress, calibration_examples: 4096}",
    "distill.hard_fraction=0.5",
    "distill.training.optimizer=muon",
    "distill.training.learning_rate=0.01",
]


def test_defaults_are_the_papers():
    config = RunConfig.model_validate({"teacher": {"experts": [8]}})
    assert config.distill.hard_fraction == 0.75 and config.distill.temperature == 1.0
    assert config.distill.soft_start == 0 and config.distill.soft_labels == "online"
    assert config.teacher.capacity_factor_train == 1.25 and config.teacher.capacity_factor_eval == 2.0
    assert config.teacher.load_balancing_weight == 0.01 and config.teacher.jitter == 0.01
    assert (config.data.noise_density, config.data.mean_span_length, config.data.input_length) == (0.15, 3.0, 512)
    assert (config.model.d_model, config.model.num_layers, config.model.d_ff) == (768, 12, 3072)


def test_overrides_and_seed():
    config = load_config("text", ["distill.training.learning_rate=2e-4", "teacher.experts=[2, 64]"], seed=7)
    assert config.distill.training.learning_rate == 2e-4
    assert config.teacher.ratios == {"e2": 2, "e64": 64} and config.seeds == [7]


def test_a_file_may_start_from_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: text\ndistill:\n  hard_fraction: 0.5\n  training: {learning_rate: 1e-4}\n")
    config, text = load_config(str(path)), load_config("text")
    assert config.distill.hard_fraction == 0.5 and config.distill.training.learning_rate == 1e-4
    assert (
        config.name == "mine"
        and config.teacher == text.teacher
        and config.distill.training.steps == text.distill.training.steps
    )


def test_a_file_replaces_the_checkpoints_of_its_preset(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("preset: switch-base\nteacher: {checkpoints: {e8: somewhere}}\n")
    assert load_config(str(path)).teacher.checkpoints == {"e8": "somewhere"}


def test_the_resolved_config_is_a_config(tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.safe_dump(load_config("text").model_dump(mode="json")))
    assert load_config(str(path)) == load_config("text")


def test_a_recipe_overrides_the_preset_and_the_file_overrides_the_recipe(tmp_path):
    best = load_config("text", ["recipe=best"])
    assert best == load_config("text", RECIPE)
    assert best.distill.training.steps == load_config("text").distill.training.steps
    path = tmp_path / "mine.yaml"
    path.write_text("preset: text\nname: text\nrecipe: best\ndistill: {hard_fraction: 0.6}")
    assert load_config(str(path)) == load_config("text", [*RECIPE, "distill.hard_fraction=0.6"])
    again = load_config(str(path), ["distill.training.learning_rate=0.1", "recipe=paper"])
    assert again.student.ffn_init == "random"
    assert again.distill.hard_fraction == 0.75
    assert again.distill.training.optimizer == "adafactor"
    assert again.distill.training.learning_rate == 0.1


def test_best_and_table_7_share_teachers_baselines_and_the_papers_students():
    """The long baselines differ, because that of ``best`` has the optimizer of its students."""
    ours, theirs = (
        {stage.fingerprint for stage in plan(load_config(name), "x")[:-1] if stage.kind != "long-baseline"}
        for name in ("best", "table7")
    )
    assert theirs < ours and len(theirs) == 3 + 3 * 5 * (2 + 2)
    variants = {one.variant for one in plan(load_config("best"), "x")}
    assert {"best", "best-hard-labels", "paper", "hard-labels"} <= variants


@pytest.mark.parametrize(
    "override,message",
    [
        ("distil.training.steps=3", "no key distil; did you mean distill?"),
        ("distill.hard_fracton=1", "no key distill.hard_fracton; did you mean hard_fraction?"),
        ("distill.zzz=1", "no key distill.zzz; allowed keys: hard_fraction, temperature, soft_start"),
        ("distill.hard_fraction=2", "distill.hard_fraction is 2; input should be less than or equal to 1"),
        ("distill.temperature=.nan", "distill.temperature is nan"),
        ("distill.training.steps=1.5", "distill.training.steps is 1.5"),
        ("distill.training.steps=10", r"warmup_steps \(\d+\) must be smaller than steps \(10\)"),
        ("distill.training.batch_size=null", "distill.training.batch_size is None"),
        ("distill.training.micro_batch_size=7", "must be a multiple of micro_batch_size"),
        ("distill.soft_labels=offline", "input should be 'online' or 'cached'"),
        ("distill.soft_start=200", r"distill: soft_start \(200\) must be smaller than training.steps \(200\)"),
        ("distill={soft_labels: cached, expert_parallel: true}", "expert_parallel .* set soft_labels to online"),
        ("distill.labels.form=topk", "distill.labels.form is 'topk'; input should be 'top_k' or 'sampled'"),
        ("distill.labels.num_tokens=0", "distill.labels.num_tokens is 0"),
        ("distill.labels.words=4", "distill.labels: words is now called num_tokens; rename it"),
        (
            "variants={few: {distill: {labels: {words: 4}}}}",
            "in variants.few, distill.labels: words is now called num_tokens; rename it",
        ),
        ("distill.training.schedule=linear", "input should be 'inverse_sqrt', 'constant' or 'cosine'"),
        ("student.ffn_init=worst", "student.ffn_init is 'worst'; input should be 'random', 'mean'"),
        ("student.calibration_examples=0", "student.calibration_examples is 0"),
        ("student={ffn_init: fit, non_expert_init: random}", "ffn_init must be random too, not fit"),
        ("teacher.experts=8", "teacher.experts is 8; input should be a valid list"),
        ("teacher.experts=[8, 8]", r"experts \[8, 8\] has a size twice"),
        ("teacher.experts=[]", "name at least one teacher"),
        ("teacher.checkpoints={x3: a}", "teacher.checkpoints.x3 is 'x3'"),
        ("teacher.checkpoints={e99: a}", "data.tokenizer must name their tokenizer"),
        ("data=3", "data is 3; it must be a section"),
        ("model.num_layers=3", r"num_layers \(3\) must be a multiple of sparse_every \(2\)"),
        ("seeds=[1, 1]", "contains duplicates"),
        ("seeds=[]", "seeds is"),
        ("name=../x", "name is '../x'"),
        ("a", "--set 'a' must look like a.b=value"),
        ("recipe=bets", "recipe is 'bets'; use one of paper, best"),
        ("recipe=[best]", "recipe is \\['best'\\]; use one of paper, best"),
        ("name.x=1", "name is a value, not a section"),
        ("name=[", "is not a YAML value"),
        ("data.corpus=!!python/object:os.system", "is not a YAML value"),
    ],
)
def test_a_wrong_value_gives_one_line(override, message):
    with pytest.raises(UserError, match=message) as raised:
        load_config("text", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text,message",
    [
        ("[1, 2]", "must hold keys and values"),
        ("a: [", "is not readable YAML"),
        ("x: !!python/object/apply:os.system [true]", "is not readable YAML"),
        ("preset: dmo", "preset is 'dmo'; use one of"),
        ("recipe: 3", "recipe is 3; use one of paper, best"),
        ("preset: [text]", "preset is \\['text'\\]; use one of"),
        ("data: {}", "teacher is missing"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


@pytest.mark.parametrize(
    "file,name",
    [("_mine.yaml", "mine"), ("über.yaml", "ber"), ("a b.yaml", "a-b"), ("é.yaml", "run"), ("x" * 70, "x" * 64)],
)
def test_a_run_has_the_name_of_its_file_as_far_as_names_allow(tmp_path, file, name):
    path = tmp_path / file
    path.write_text("preset: smoke")
    values = load_config(str(path))
    assert values.name == name


def test_a_misspelt_preset_gets_a_suggestion():
    with pytest.raises(UserError, match="neither a preset .*did you mean demo"):
        load_config("dmo")


@pytest.mark.parametrize(
    "text,size", [("8GB", 8e9), ("1.5gb", 1.5e9), ("500 MB", 5e8), ("2TB", 2e12), ("12345", 12345)]
)
def test_memory_has_units(text, size):
    assert load_config("smoke", [f"teacher.memory={text}"]).teacher.memory == size


class TestPlan:
    def test_order_and_inputs(self):
        stages = plan(load_config("smoke"), "data")
        titles = [stage.title for stage in stages]
        assert titles == [
            *["baseline", "long-baseline", "teacher e2", "init e2", "distill e2"],
            *["teacher e4", "init e4", "distill e4", "report"],
        ]
        for number, stage in enumerate(stages):
            assert all(upstream in stages[:number] for upstream in stage.inputs.values())

    def fingerprints(self, *overrides, data="data"):
        return {stage.title: stage.fingerprint for stage in plan(load_config("smoke", overrides), data)}

    def changed(self, *overrides, data="data"):
        before, after = self.fingerprints(), self.fingerprints(*overrides, data=data)
        return {title for title in before if before[title] != after[title]}

    def test_answers_and_what_is_trained_on_them_change_with_their_longest_length(self):
        """Also if no target of the data is so long, and the data do not change."""
        answers = ["distill.targets=teacher", "distill.soft_labels=cached", "teacher.experts=[4]"]

        def stages(length):
            config = load_config("task-smoke", [*answers, f"task.max_target={length}"])
            return {stage.title: stage for stage in plan(config, "data")}

        before, after = stages(32), stages(64)
        assert all(before[title].fingerprint != after[title].fingerprint for title in before)
        labels = [of["label e4"].settings for of in (before, after)]
        assert labels[0] == labels[1] and "max_target" in before["answer e4"].settings

    def test_a_stage_changes_with_its_own_settings_and_its_inputs_alone(self):
        assert self.changed("distill.hard_fraction=0.5") == {"distill e2", "distill e4", "report"}
        assert self.changed("distill.training.learning_rate=0.1") == {
            *("long-baseline", "distill e2", "distill e4", "report")
        }
        assert self.changed("distill.training.steps=7") == {
            *("baseline", "long-baseline", "distill e2", "distill e4", "report")
        }
        assert self.changed("report.resamples=500") == {"report"}
        kept = {"baseline", "long-baseline"}
        assert self.changed("teacher.load_balancing_weight=0.1") == set(self.fingerprints()) - kept
        assert self.changed(data="other") == set(self.fingerprints())
        assert self.changed("teacher.memory=8GB") == set()
        assert self.changed("distill.expert_parallel=true") == set()
        assert self.changed() == set()

    def test_how_the_student_starts_concerns_init_and_what_comes_after_it(self):
        later = {"init e2", "init e4", "distill e2", "distill e4", "report"}
        assert self.changed("student.ffn_init=fit") == self.changed("student.non_expert_init=random") == later
        assert self.changed("student.calibration_examples=8") == set()
        fitted = self.fingerprints("student.ffn_init=fit")
        assert (
            self.fingerprints("student.ffn_init=fit", "student.calibration_examples=8")["init e2"] != fitted["init e2"]
        )

    def test_the_papers_student_keeps_its_fingerprint(self):
        """Its stages do not contain newer settings that do not concern it."""
        init = next(stage for stage in plan(load_config("smoke"), "data") if stage.kind == "init")
        assert init.settings == {"seed": 0, "student": {"ffn_init": "random"}}

    def test_the_size_of_the_student_concerns_init_and_what_comes_after_it(self):
        later = {"init e2", "init e4", "distill e2", "distill e4", "report"}
        assert self.changed("student.d_ff=128") == self.changed("student.num_decoder_layers=1") == later
        assert self.changed("student.d_ff=null") == self.changed("student.num_decoder_layers=null") == set()

    def test_another_teacher_leaves_the_first_alone(self):
        assert self.changed("teacher.experts=[2, 4, 8]") == {"report"}

    def test_the_teacher_is_no_input_of_a_student_without_soft_labels(self):
        stages = {stage.title: stage for stage in plan(load_config("smoke", ["distill.hard_fraction=1.0"]), "data")}
        assert set(stages["distill e2"].inputs) == {"init"}

    def test_an_option_of_the_student_changes_the_student_alone(self):
        assert self.changed("distill.soft_start=1") == {"distill e2", "distill e4", "report"}

    def test_an_option_that_is_off_is_no_setting_of_a_stage(self):
        stages = {stage.title: stage for stage in plan(load_config("smoke"), "data")}
        assert set(stages["distill e2"].settings["distill"]) == {"hard_fraction", "temperature", "training"}

    def test_what_happens_to_a_run_that_diverges_is_a_setting_only_where_it_goes_on(self):
        assert self.changed("teacher.training.on_divergence=stop") == set()
        assert self.changed("distill.training.on_divergence=restart") == {
            *("long-baseline", "distill e2", "distill e4", "report")
        }
        assert len(self.changed("teacher.training.on_divergence=restart")) == 9

    def test_renamed_keys_have_their_former_names_in_what_is_stored(self):
        """Fingerprints, MLflow params and labels.json keep the old names."""
        labels = plan(load_config("smoke", ["distill.soft_labels=cached", "distill.labels.num_tokens=4"]), "data")[4]
        expected = {"form": "sampled", "words": 4, "examples": 64, "seed": 0}
        assert labels.kind == "label" and labels.settings["labels"] == expected

    def test_cached_labels_are_made_between_teacher_and_student(self):
        stages = plan(load_config("smoke", ["distill.soft_labels=cached"]), "data")
        titles = [stage.title for stage in stages]
        assert titles[2:6] == ["teacher e2", "init e2", "label e2", "distill e2"] and len(titles) == 11
        by_title = dict(zip(titles, stages, strict=True))
        assert set(by_title["label e2"].inputs) == {"teacher"}
        assert set(by_title["distill e2"].inputs) == {"label", "init"}
        assert not any("label" in title for title in by_title["report"].inputs)

    def test_labels_depend_on_the_teacher_and_on_what_is_stored_alone(self):
        def labels(*overrides, data="data", seed=None):
            config = load_config("smoke", ["distill.soft_labels=cached", *overrides], seed)
            return next(stage.fingerprint for stage in plan(config, data) if stage.kind == "label")

        before = labels()
        for same in (
            *("training.learning_rate=0.1", "training.log_every=1"),
            *("hard_fraction=0.5", "soft_start=3", "labels.examples=64"),
        ):
            assert labels(f"distill.{same}") == before, same
        assert labels("data.test_examples=16", "teacher.checkpoints={}") != before  # changes the teacher
        for other in (
            *("distill.temperature=2.0", "distill.labels.num_tokens=8", "distill.labels.form=top_k"),
            *("distill.labels.seed=1", "distill.labels.examples=65", "distill.training.steps=9"),
            *("teacher.training.steps=17", "teacher.capacity_factor_eval=1.0", "teacher.evaluation_batch_size=8"),
            "data.noise_density=0.3",
        ):
            assert labels(other) != before, other
        assert labels("precision=float32") != labels("precision=bfloat16")
        assert labels(data="other") != before

    def test_what_is_stored_does_not_concern_students_that_do_not_read_it(self):
        assert self.changed("distill.labels.num_tokens=8", "distill.labels.seed=3") == set()
        hard = self.fingerprints("distill.hard_fraction=1.0")
        assert self.fingerprints("distill.hard_fraction=1.0", "distill.soft_labels=cached") == hard

    def test_students_of_all_seeds_share_a_loaded_teacher_and_its_labels(self):
        loaded = ["teacher.experts=[]", "teacher.checkpoints={e8: somewhere}", "data.tokenizer=t5"]
        overrides = [*loaded, "distill.soft_labels=cached"]
        several = plan(load_config("smoke", [*overrides, "seeds=[0, 1]"]), "data")
        titles = [stage.title for stage in several]
        assert titles.count("teacher e8") == titles.count("label e8") == 1 and len(several) == 2 * 3 + 2 + 1
        assert "teacher e8" in several[-1].inputs
        alone = plan(load_config("smoke", overrides, 1), "data")
        shared = {stage.title: stage.fingerprint for stage in several}
        for stage in alone[:-1]:
            assert shared[stage.title] == stage.fingerprint

    LOADED = ("teacher.experts=[]", "data.tokenizer=t5", "baseline.checkpoint=some/t5")

    def test_another_revision_of_a_loaded_model_is_another_model(self, commits):
        loaded = [*self.LOADED, "teacher.checkpoints={e8: some/switch}"]
        before = self.fingerprints(*loaded)
        assert self.fingerprints(*self.LOADED, f"teacher.checkpoints={{e8: some/switch@{'a' * 40}}}") == before
        commits["main"] = "b" * 40
        after = self.fingerprints(*loaded)
        assert {title for title in before if before[title] != after[title]} == set(before)
        stages = {stage.title: stage for stage in plan(load_config("smoke", loaded), "data")}
        assert stages["teacher e8"].settings["checkpoint"] == {"name": "some/switch", "revision": "b" * 40}
        assert stages["baseline"].settings["checkpoint"] == {"name": "some/t5", "revision": "b" * 40}

    def test_auto_is_the_precision_of_this_machine_before_it_is_hashed(self, monkeypatch):
        """A work directory that is copied to another kind of machine does not mix precisions."""
        found = {}
        for fast in (True, False):
            monkeypatch.setattr(precision, "multiplies_bfloat16", lambda fast=fast: fast)
            found[fast] = self.fingerprints()
        assert not set(found[True].values()) & set(found[False].values())
        assert found[True] == self.fingerprints("precision=bfloat16")
        assert found[False] == self.fingerprints("precision=float32")

    @pytest.mark.parametrize("kind", VERSIONS)
    def test_a_new_version_of_a_kind_makes_it_and_what_reads_it_again(self, kind, monkeypatch):
        overrides = ("distill.soft_labels=cached", "teacher.experts=[2]", "task={}", "distill.targets=teacher")
        before = self.fingerprints(*overrides)
        monkeypatch.setitem(VERSIONS, kind, VERSIONS[kind] + 1)
        after = self.fingerprints(*overrides)
        later = {
            "baseline": {"baseline", "long-baseline", "report"},
            "long-baseline": {"long-baseline", "report"},
            "teacher": set(before) - {"baseline", "long-baseline"},
            "init": {"init e2", "distill e2", "report"},
            "answer": {"answer e2", "label e2", "distill e2", "report"},
            "label": {"label e2", "distill e2", "report"},
            "distill": {"distill e2", "report"},
            "report": {"report"},
        }
        assert {title for title in before if before[title] != after[title]} == later[kind]
        assert kind in before or f"{kind} e2" in before

    def test_every_kind_of_stage_has_a_version(self):
        answers = ["distill.soft_labels=cached", "task={}", "distill.targets=teacher"]
        stages = plan(load_config("smoke", answers), "data")
        assert {stage.kind for stage in stages} == set(VERSIONS)

    def test_seeds_multiply_the_stages(self):
        stages = plan(load_config("smoke", ["seeds=[0, 1]"]), "data")
        assert len(stages) == 2 * 8 + 1 and len({stage.fingerprint for stage in stages}) == len(stages)
        assert "distill e4 seed 1" in stages[-1].inputs

    def test_variants_share_teacher_and_baseline_and_what_else_they_have_in_common(self):
        variants = "variants={mix: {}, hard: {distill: {hard_fraction: 1.0}}, again: {distill: {hard_fraction: 0.75}}}"
        stages = plan(load_config("smoke", ["teacher.experts=[4]", variants]), "data")
        titles = [stage.title for stage in stages]
        assert titles == [
            *("baseline", "long-baseline", "teacher e4", "init e4 mix", "distill e4 mix", "distill e4 hard"),
            "report",
        ]
        without = self.fingerprints("teacher.experts=[4]")
        shared = {stage.title: stage.fingerprint for stage in stages}
        assert shared["distill e4 mix"] == without["distill e4"] and shared["teacher e4"] == without["teacher e4"]
        assert shared["distill e4 hard"] == self.fingerprints("distill.hard_fraction=1.0")["distill e4"]
        assert set(stages[-1].inputs) == {
            "baseline",
            "long-baseline",
            "teacher e4",
            *(f"distill e4 {v}" for v in ("mix", "hard", "again")),
        }

    def test_models_that_are_evaluated_on_validation_are_other_stages(self):
        changed = self.changed("data.validation_fraction=0.1", "data.eval_split=validation")
        assert {"baseline", "teacher e4", "distill e4"} <= changed

    def test_the_saved_baseline_takes_the_steps_of_the_teachers(self):
        def full_steps(preset):
            return plan(load_config(preset), "data")[0].settings["full_steps"]

        assert full_steps("smoke") == 16
        assert full_steps("switch-base") == 10_000  # the student's, because the teacher is loaded

    def test_the_long_baseline_continues_with_the_training_of_the_student(self):
        stages = {stage.title: stage for stage in plan(load_config("smoke"), "data")}
        long, student = stages["long-baseline"], stages["distill e4"]
        assert long.inputs == {"baseline": stages["baseline"]} and long.command == "baseline"
        assert long.settings["training"] == student.settings["distill"]["training"]
        assert "long-baseline" not in {stage.title for stage in plan(load_config("switch-base"), "data")}

    def test_other_settings_of_the_student_keep_the_trained_baseline(self):
        changed = self.changed("distill.training.optimizer=muon", "baseline.steps=8")
        assert "long-baseline" in changed and "baseline" not in changed

    def test_lengths_concern_students_and_the_long_baseline(self):
        changed = self.changed("distill.lengths=[4]")
        assert {"long-baseline", "distill e4", "report"} <= changed
        assert all(title.startswith(("long-baseline", "distill", "report")) for title in changed)
        stages = {stage.title: stage for stage in plan(load_config("smoke"), "data")}
        assert "lengths" not in stages["long-baseline"].settings  # so that those of older runs are reused
        own = {
            stage.title: stage
            for stage in plan(load_config("smoke", ["variants={a: {distill: {lengths: [4]}}}"]), "data")
        }
        assert own["long-baseline"].fingerprint == stages["long-baseline"].fingerprint

    def test_the_baselines_own_length_is_only_its_own(self):
        assert self.changed("baseline.steps=9") == {"baseline", "long-baseline", "report"}
        with pytest.raises(UserError, match="baseline.steps is 17, but teacher.training.steps is 16"):
            load_config("smoke", ["baseline.steps=17"])

    def test_the_baselines_own_learning_rate_is_only_its_own(self):
        assert self.changed("baseline.learning_rate=0.01") == {"baseline", "long-baseline", "report"}
        config = load_config("smoke", ["baseline.learning_rate=0.01"])
        baseline, teacher = config.baseline_training, config.teacher.training
        assert (baseline.learning_rate, teacher.learning_rate) == (0.01, 0.005)
        assert baseline.model_copy(update={"learning_rate": teacher.learning_rate}) == teacher
        assert load_config("smoke").baseline_training == teacher

    def test_an_initialisation_depends_on_the_settings_that_it_reads(self):
        measured, students = "student.measure_ffn_errors=true", {"init e4", "distill e4", "report"}
        few, fitted = "student.calibration_examples=8", "student.ffn_init=fit"
        assert not self.changed(few) and students <= self.changed(measured)

        def inits(*overrides):
            return {one.fingerprint for one in plan(load_config("smoke", overrides), "data") if one.kind == "init"}

        assert inits(measured, few).isdisjoint(inits(measured))  # the errors are measured on a quarter as many
        assert inits(fitted, measured) == inits(fitted) and inits(fitted, few).isdisjoint(inits(fitted))

    def test_the_baselines_own_width_is_only_its_own(self):
        assert self.changed("baseline.d_ff=128") == {"baseline", "long-baseline", "report"}

    def test_a_baseline_does_not_end_within_its_warmup(self):
        with pytest.raises(
            UserError, match="baseline.steps is 2, but teacher.training.warmup_steps is 2; set .* to more"
        ):
            load_config("smoke", ["baseline.steps=2"])
        short = ["distill.training.steps=2", "distill.training.warmup_steps=1"]
        with pytest.raises(
            UserError, match="baseline.steps is null, .* student's 2 steps, but teacher.training.warmup_steps is 2; set"
        ):
            load_config("smoke", short)
        assert load_config("smoke", [*short, "baseline.steps=3"]).baseline_steps == 3

    def test_a_variant_may_be_shorter_than_the_baseline(self):
        """All variants share the baseline, which has the length of the section distill."""
        short = "variants={whole: {}, short: {distill: {training: {steps: 2, warmup_steps: 1}}}}"
        assert load_config("smoke", [short]).baseline_steps == 8
        loaded = ["teacher={checkpoints: {e4: t}}", "data.tokenizer=t5", "baseline.steps=8"]
        assert load_config("smoke", [*loaded, short]).baseline_steps == 8

    def test_the_order_of_the_rows_belongs_to_the_report(self):
        def reports(*overrides):
            return plan(load_config("smoke", overrides), "data")[-1].fingerprint

        variants = [
            "variants={a: {}, b: {distill: {hard_fraction: 1.0}}}",
            "variants={b: {distill: {hard_fraction: 1.0}}, a: {}}",
        ]
        assert reports(variants[0]) != reports(variants[1])
        assert reports("seeds=[0, 1]") != reports("seeds=[1, 0]")

    def test_a_checkpoint_on_disk_counts_by_its_files(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        overrides = ["teacher.experts=[]", f"teacher.checkpoints={{e8: {tmp_path}}}", "data.tokenizer=t5"]
        before = self.fingerprints(*overrides)
        (tmp_path / "config.json").write_text('{"a": 1}')
        assert self.fingerprints(*overrides)["teacher e8"] != before["teacher e8"]
