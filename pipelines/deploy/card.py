"""The ``model_card.md`` of an export: its origin, its quality, its task, and code to load it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.deploy.verify import CheckedExport
from pipelines.reporting.cells import kept, markdown_table, metric_value
from pipelines.reporting.table import describe_sample
from pipelines.tracking.lineage import nodes
from pipelines.tracking.store import Store
from pipelines.workdir.stage import Stage

if TYPE_CHECKING:
    from students.export.parity import Parity

# An input in the code, unless there is one of the task.
_INPUT = "The quick <extra_id_0> jumps over the lazy dog."
# Python code to run in the directory of the export.
_LOAD = {
    "hf": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSeq2SeqLM.from_pretrained(".")
inputs = tokenizer([INPUT], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(inputs.input_ids, attention_mask=inputs.attention_mask)))""",
    "onnx": """from students.runtime import decode, encode, load_runner  # needs onnxruntime and tokenizers, not torch

runner = load_runner(".")
ids = encode(runner.tokenizer, INPUT)
print(decode(runner.tokenizer, runner.generate([ids], [64])[0]))""",
    "ctranslate2": """from ctranslate2 import Translator
from tokenizers import Tokenizer

tokenizer, translator = Tokenizer.from_file("tokenizer.json"), Translator(".")
tokens = tokenizer.encode(INPUT).tokens
answer = translator.translate_batch([tokens], beam_size=1, min_decoding_length=0, max_input_length=0)[0].hypotheses[0]
print(tokenizer.decode([tokenizer.token_to_id(token) for token in answer], skip_special_tokens=False))""",
    "mlflow": """import mlflow, pandas

model = mlflow.pyfunc.load_model(".")
frame = pandas.DataFrame({"text": [INPUT]})
print(model.predict(frame, params={"max_tokens": 64}))""",
}


def report_row(store: Store, lineage: dict[str, Any]) -> dict[str, Any] | None:
    """The row of the exported student in the newest report.json that contains it, with both baselines and the data.

    The row is the one that the report's run has read the student's model for. The ratio and variant of the student's
    own run may be those of another student in the report, because a later config may name variants differently.

    Args:
        lineage: of the export, from ``pipelines.tracking.lineage.read_lineage``.

    Returns:
        None if no finished report contains the student.

    Raises:
        StoreError: the store fails.
    """
    student = lineage["inputs"][0]
    experiment = store.client.get_run(student["run_id"]).info.experiment_id
    for run in store.client.search_runs([experiment], "tags.stage = 'report'", order_by=["attributes.start_time DESC"]):
        roles = {key for key, value in run.data.tags.items() if value == student["model_id"]}
        if not roles or run.info.status != "FINISHED":
            continue
        report = json.loads(Path(store.client.download_artifacts(run.info.run_id, "report.json")).read_text())
        for row in report["ratios"]:
            if roles & _roles(row):
                return {**row, **{key: report[key] for key in ("baseline", "long_baseline", "data")}}
    return None


def _roles(row: dict[str, Any]) -> set[str]:
    """The tags with the models of a row's students, one per seed, on the run of its report."""
    stages = [Stage("distill", {}, ratio=row["ratio"], variant=row["variant"], seed=seed) for seed in row["seeds"]]
    return {f"input.{stage.title}" for stage in stages}


def model_card(
    lineage: dict[str, Any],
    row: dict[str, Any] | None,
    format: str,
    precision: str,
    checked: CheckedExport,
) -> str:
    """The model card in Markdown. Facts that are not known are left out.

    Args:
        lineage: of the export.
        row: from ``report_row``.
        format, precision: of the export.
        checked: the results of the check of the export.
    """
    student, task = lineage["inputs"][0], checked.task
    lines = [f"# {student['model']}", "", f"A dense T5, exported as {format} in {precision}.", ""]
    facts = {
        **_origin(student, "test inputs of the task" if task else "held-out text"),
        **_comparison(row),
        "parity": _parity(checked.parity, "targets of the task" if task and task["examples"] else "held-out text"),
        "tried with": _tried(checked.versions, checked.plain),
    }
    lines += [f"- **{name}**: {text}" for name, text in facts.items() if text]
    if task:
        lines += ["", *_task(task, row, f"{format} {precision}")[:-1]]
    example = task["example"]["input"] if task and task["example"] else _INPUT
    code = _LOAD[format].replace("INPUT", repr(example))
    lines += ["", "Load it from this directory:", "", "```python", code, "```", ""]
    lines += ["All runs that led to this model: `lineage.json`, or `switch-distill lineage` on this directory.", ""]
    return "\n".join(lines)


def _origin(student: dict[str, Any], of: str) -> dict[str, str | None]:
    quality = student["metrics"].get("quality")
    teacher = next((node for node in nodes(student) if node["stage"] == "teacher"), None)
    made = f"run `{student['run_id']}`, model `{student['model_id']}`, " if student["run_id"] else ""
    data = [f"{entry['name']} ({entry['context']}), digest `{entry['digest']}`" for entry in student["datasets"]]
    known = teacher["metrics"].get("quality") if teacher else None
    reached = f", quality {known:.4f}" if known is not None else ""
    measure = f"negative log perplexity on {of}, nats per token; higher is better"
    return {
        "student": f"{made}weights `{student['sha256']}`",
        "distilled from": f"{teacher['model']}, run `{teacher['run_id']}`{reached}" if teacher else None,
        "data": "; ".join(data),
        "quality": f"{quality:.4f} ({measure})" if quality is not None else None,
    }


def _task(task: dict[str, Any], row: dict[str, Any] | None, export: str) -> list[str]:
    """The lines of the card on a task, from the manifest and from the row of the report.

    Args:
        task: from ``pipelines.deploy.task_record.task_record``.
        row: from ``report_row``.
        export: name of the column of the export.
    """
    lines = ["## Task", ""]
    if task["input"] is not None:
        lines += ["The template of the inputs, with the names of columns in braces:", "", _verbatim(task["input"]), ""]
    if example := task["example"]:
        lines += ["An input of the held-out examples:", "", _verbatim(example["input"]), ""]
        lines += ["The student's answer:", "", _verbatim(example["answer"]), ""]
    if row and row.get("metrics"):
        header = ["metric", "baseline", "long baseline", "teacher", "student", "kept", "kept, long"]
        models = ("baseline", "long_baseline", "teacher", "student")
        rows = [
            [name, *(metric_value(name, of[model]) for model in models), kept(of, ""), kept(of, "_long")]
            for name, of in row["metrics"].items()
        ]
        lines += [f"On the {row['data']['test_examples']:,} examples of the report:", "", markdown_table(header, rows)]
        lines += [""]
    if task["metrics"]:
        header = ["metric", "better", "student in float32", f"this export ({export})"]
        rows = [
            [name, of["better"], metric_value(name, of["student"]), metric_value(name, of["export"])]
            for name, of in task["metrics"].items()
        ]
        lines += [f"On {task['examples']} held-out examples, before and after the export:", ""]
        lines += [markdown_table(header, rows), ""]
    return lines


def _verbatim(text: str) -> str:
    """A text of the data as a block of Markdown without markup."""
    return "\n".join(f"    {line}" for line in (text or "(empty)").splitlines())


def _comparison(row: dict[str, Any] | None) -> dict[str, str | None]:
    if row is None:
        return {}
    short, long = row["baseline"], row["long_baseline"]
    return {
        "baselines": f"{short['quality']:.4f} after {short['steps']:,} steps; "
        f"{long['quality']:.4f} after {long['steps']:,}",
        "fraction of the teacher's gain kept": f"{_fraction(row, '')}; "
        f"against the long baseline {_fraction(row, '_long')}",
        "compression": f"{row['compression']:.1%} fewer parameters than the teacher: "
        f"{row['student_parameters']:,} of {row['teacher_parameters']:,}",
    }


def _fraction(row: dict[str, Any], suffix: str) -> str:
    if row[f"fraction_kept{suffix}"] is None:
        return f"undefined, because {row[f'fraction{suffix}_undefined']}"
    low, high = row[f"fraction{suffix}_interval"]
    of = describe_sample(row["data"], row["seeds"])
    return f"{row[f'fraction_kept{suffix}']:.1%} (95 % interval of {of}: [{low:.1%}, {high:.1%}])"


def _parity(parity: "Parity", of: str) -> str:
    return (
        f"on {parity.tokens:,} tokens of {of}, its quality differs from the student's by "
        f"{parity.quality_difference:+.2g} nats; the log probability of a token of the student's own answers differs "
        f"by at most {parity.log_probability_difference_max:.2g} nats; {parity.greedy_agreement:.0%} of greedy answers "
        "are equal"
    )


def _tried(versions: dict[str, str], plain: "Parity | None") -> str:
    """The libraries that have read this export, with their versions. Others may read it, but were not tried."""
    tried = ", ".join(f"{name} {version}" for name, version in versions.items())
    if plain is None:
        return tried
    return (
        f"{tried}; and with a reader of config.json and model.safetensors without transformers "
        f"(log probabilities differ by at most {plain.log_probability_difference_max:.2g} nats)"
    )
