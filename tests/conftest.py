"""Fixtures: tiny objects, small trained students, and one run of the smoke preset. No network, no GPU.

The process that distributes tests to workers reads this file too, so it imports torch and transformers in functions.
"""

import contextlib
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from distill.config import DataConfig, ModelConfig
from tests.forked import Forked
from tests.hub import Hub
from tests.once import once, shared_directory

if TYPE_CHECKING:
    from distill.data.prepare import PreparedData

ROOT = Path(__file__).parent.parent

# The files that take longest, with few tests. They come first, so that no worker is alone with one at the end.
_LONG = (
    *("pipelines/deploy/test_serve", "pipelines/deploy/test_export", "test_processes", "pipelines/test_wrong_inputs"),
    *("students/export/test_formats", "pipelines/test_variants", "pipelines/runner/test_side_by_side"),
    *("distill/training/test_loop", "pipelines/test_end_to_end", "teachers/test_streaming", "pipelines/test_damage"),
    *("distill/io/test_hub_files", "distill/models/test_remote_weights", "pipelines/reporting/test_bootstrap"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of ``_LONG`` first, in its order."""
    place = {ROOT / "tests" / f"{name}.py": number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_collection_finish() -> None:
    """Use one thread, and exempt what the imports have made from garbage collection."""
    import torch

    torch.set_num_threads(1)  # the tensors here are too small to share
    # absl, which rouge-score imports, closes the stream that was sys.stderr at its import as soon as a library
    # configures logging anew. During collection this is a file of pytest.
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__
    gc.freeze()  # training collects garbage, and would search all of it


@pytest.fixture
def shape() -> ModelConfig:
    return ModelConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=2)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A directory of all workers."""
    return shared_directory(tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def user_cache(shared) -> None:
    """Let all processes of this test run use a new, empty directory in place of the user's cache directory."""
    # matplotlib would list all fonts of the machine again.
    os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
    os.environ["XDG_CACHE_HOME"] = str(shared / "user-cache")


def _write_texts(directory: Path) -> None:
    words = (ROOT / "LICENSE").read_text().split()
    for number in range(60):
        start = number * 25
        (directory / f"{number:02d}.txt").write_text(f"document {number}\n" + " ".join(words[start : start + 200]))


@pytest.fixture(scope="session")
def text_files(shared) -> str:
    """A corpus of 60 documents of real words, as a ``text:`` corpus."""
    return f"text:{once(shared / 'corpus', _write_texts)}/*.txt"


@pytest.fixture(scope="session")
def data_config(text_files) -> DataConfig:
    return DataConfig(corpus=text_files, vocabulary=512, input_length=32, test_fraction=0.2, test_examples=12)


@pytest.fixture(scope="session")
def data(data_config, shared) -> "PreparedData":
    from distill.data.prepare import prepare_data

    return prepare_data(data_config, shared / "data")


def _train(directory: Path, data: "PreparedData", config: DataConfig, **shape) -> None:
    """Save a T5 that is trained enough to have confident predictions, with its tokenizer."""
    import torch

    from distill.data.examples import Examples
    from distill.models.build import build_dense

    model = ModelConfig(d_model=32, d_ff=64, d_kv=16, num_heads=2, sparse_every=1, **shape)
    t5 = build_dense(model, data.vocab_size, pad=data.special_tokens.pad, eos=data.special_tokens.eos, seed=0).train()
    examples, optimizer = Examples(data, config, seed=0), torch.optim.AdamW(t5.parameters(), lr=5e-3)
    for step in range(300):
        batch = examples.batch(range(step * 8, step * 8 + 8))
        t5(input_ids=batch.input_ids, labels=batch.labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    t5.save_pretrained(directory)
    data.tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def student(data, data_config, shared) -> Path:
    """The directory of a small trained T5: ReLU, tied."""
    return once(shared / "student", lambda directory: _train(directory, data, data_config, num_layers=2))


@pytest.fixture(scope="session")
def gated_student(data, data_config, shared) -> Path:
    """The directory of a small trained T5: gated GELU, untied, output not scaled."""
    shape = {"num_layers": 1, "feed_forward": "gated-gelu", "tie_word_embeddings": False}
    return once(shared / "gated-student", lambda directory: _train(directory, data, data_config, **shape))


def switch_distill(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command line in a new process: a fork of a prepared one, unless a library reads ``environment``."""
    if all(name.startswith("MLFLOW_") for name in environment):
        process = Forked("from pipelines.cli import main; main()", arguments, environment)
        stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": "", **environment},
        timeout=600,
    )


def interrupted_switch_distill(arguments: list[str], step: int, kind: signal.Signals) -> int:
    """Exit code of a process that sends itself a signal after a step of training."""
    code = (
        "import os, signal\n"
        "from pipelines.cli import app as cli\n"
        "from pipelines.runner import progress\n"
        "update = progress.Bar.update\n"
        "def die(bar, step, *rest):\n"
        "    update(bar, step, *rest)\n"
        f"    if step == {step}: os.kill(os.getpid(), {int(kind)})\n"
        "progress.Bar.update = die\n"
        "cli.main()\n"
    )
    process = Forked(code, arguments)
    process.communicate()
    return process.returncode


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of this many bytes (rounded up to pages) and return its directory."""
    disks = []

    def mount(size: int) -> Path:
        directory = tmp_path / f"disk{len(disks)}"
        directory.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True)
        if done.returncode:
            pytest.skip("only root can mount a small file system")
        disks.append(directory)
        return directory

    yield mount
    for directory in disks:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def hub(tmp_path) -> Iterator[Hub]:
    """An empty hub with an empty cache, for processes with its ``environment``."""
    server = Hub(tmp_path / "huggingface")
    yield server
    server.close()


@pytest.fixture(scope="session")
def cli():
    return switch_distill


@pytest.fixture(scope="session")
def interrupted():
    return interrupted_switch_distill


@pytest.fixture(scope="session")
def finished_smoke(shared) -> tuple[Path, subprocess.CompletedProcess]:
    """Work directory, and the finished process of ``run smoke --json`` in it. Tests only read and copy it."""

    def run(directory: Path) -> None:
        done = switch_distill("run", "smoke", "--workdir", str(directory / "work"), "--json")
        assert done.returncode == 0, done.stderr
        (directory / "process.json").write_text(json.dumps([done.args, done.returncode, done.stdout, done.stderr]))

    made = once(shared / "smoke", run)
    return made / "work", subprocess.CompletedProcess(*json.loads((made / "process.json").read_text()))


@pytest.fixture(scope="session")
def smoke(finished_smoke, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A copy of the finished work directory for the tests of this worker, and the process."""
    workdir, done = finished_smoke
    return shutil.copytree(workdir, tmp_path_factory.mktemp("smoke") / "work"), done


class Server:
    """A running server: its address, its process, and requests to it."""

    def __init__(self, process: subprocess.Popen, url: str, hold: Path | None = None):
        self.process, self.url, self.hold = process, url, hold

    def complete(self, prompt="hello", **fields) -> requests.Response:
        return requests.post(f"{self.url}/v1/completions", json={"prompt": prompt, **fields}, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric with these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in requests.get(f"{self.url}/metrics", timeout=10).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == f"switch_distill_{name}" and all(label in sample for label in wanted):
                total += float(value)
        return total

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within the block, the model does not answer."""
        self.hold.touch()
        try:
            yield
        finally:
            self.hold.unlink(missing_ok=True)


@contextlib.contextmanager
def started(command: list[str], hold: Path | None = None, **environment: str) -> Iterator[Server]:
    """A server, from the first line with its address, which it prints when it is ready."""
    everything = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=everything, **pipes)
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"Serving .* on (http://\S+);", line):
                break
        else:
            pytest.fail(f"the server did not start: {''.join(lines)}")
        yield Server(process, found[1], hold)
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture(scope="session")
def serving():
    """Start a server in a new process; a context manager that returns a ``Server``."""
    return started
