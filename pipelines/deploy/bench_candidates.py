"""The candidates of ``switch-distill bench-serving``: models and servers that answer requests, each in its own process.

Each has its own process, because the number of threads and the memory belong to a process. Imports no torch.
"""

import contextlib
import http.client
import json
import multiprocessing
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

from distill.errors import UserError
from distill.module_command import module_command

Answer = Callable[[list[str], int], int]  # prompts, tokens of each answer -> number of tokens of all answers


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model or server to measure."""

    name: str
    kind: str  # transformers, teacher, runner or server
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)  # arguments of the kind, or options of the server


class WaveTiming(NamedTuple):
    """Timing of a wave of concurrent requests."""

    seconds: float  # of the whole wave
    latencies: list[float]  # seconds of each request
    tokens: int  # of all answers


class Process:
    """A model in a process that answers batches. Concurrent requests form one batch."""

    def __init__(self, candidate: Candidate, threads: int, warm_up: str):
        """Start the process with ``threads`` threads, and wait until it has answered the prompt ``warm_up``.

        Raises:
            UserError: the model cannot be loaded or run.
        """
        context = multiprocessing.get_context("spawn")
        self._name = candidate.name
        self._pipe, theirs = context.Pipe()
        began = time.perf_counter()
        self._process = context.Process(target=_answer_batches, args=(theirs, candidate, threads), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the process
        with _stopped_on_failure(self):
            self._ask([warm_up], 4)
        self.start_seconds = time.perf_counter() - began

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def measure(self, prompts: list[str], max_tokens: int, calls: int) -> WaveTiming:
        """Answer the batch ``prompts`` ``calls`` times, with ``max_tokens`` tokens per answer.

        Raises:
            UserError: the model cannot be run.
        """
        latencies, tokens = [], 0
        for _ in range(calls):
            seconds, made = self._ask(prompts, max_tokens)
            latencies += [seconds] * len(prompts)
            tokens += made
        return WaveTiming(sum(latencies) / len(prompts), latencies, tokens)

    def stop(self) -> None:
        """End the process, which may have died."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def _ask(self, prompts: list[str], max_tokens: int) -> tuple[float, int]:
        try:
            self._pipe.send((prompts, max_tokens))
            reply = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join()
            raise UserError(
                f"{self._name} cannot be measured: its process has ended with exit code {self._process.exitcode}; "
                "read its messages above, or free memory if the system has killed it"
            ) from error
        if isinstance(reply, Exception):
            raise reply
        return reply


class Server:
    """A process of ``switch-distill serve``. Concurrent requests come from clients with separate connections."""

    def __init__(self, candidate: Candidate, threads: int, warm_up: str):
        """Start the server with ``threads`` threads, and wait until it has answered the prompt ``warm_up``.

        Raises:
            UserError: the server does not start, does not answer, or answers with an error.
        """
        self._name = candidate.name
        options = [f"--{name}={value}" for name, value in candidate.settings.items()]
        command = ["serve", str(candidate.directory), "--port=0", f"--threads={threads}", *options]
        began = time.perf_counter()
        self._process = subprocess.Popen(module_command("pipelines.cli", *command), stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None  # it is a pipe
        self._stderr = self._process.stderr
        with _stopped_on_failure(self):
            self._address = self._wait_for_address()
            self.start_seconds = time.perf_counter() - began
            self.measure([warm_up], 4, 1)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def measure(self, prompts: list[str], max_tokens: int, calls: int) -> WaveTiming:
        """Send ``calls`` requests per prompt, one client per prompt, with ``max_tokens`` tokens per answer.

        Raises:
            UserError: the server does not answer, or answers with an error.
        """
        with ThreadPoolExecutor(len(prompts)) as clients:
            began = time.perf_counter()
            each = list(clients.map(lambda prompt: self._client(prompt, max_tokens, calls), prompts))
            seconds = time.perf_counter() - began
        return WaveTiming(seconds, [one for found, _ in each for one in found], sum(tokens for _, tokens in each))

    def stop(self) -> None:
        """End the process, which may have died."""
        self._process.terminate()
        self._process.wait()
        self._stderr.close()

    def _wait_for_address(self) -> str:
        output = ""
        while not (found := re.search(r" on (http://\S+);", output)):
            line = self._stderr.readline()
            if not line:
                raise UserError(f"{self._name} cannot be measured: the server did not start: {output.strip()}")
            output += line
        return urlsplit(found[1]).netloc

    def _client(self, prompt: str, max_tokens: int, calls: int) -> tuple[list[float], int]:
        latencies, tokens = [], 0
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "min_tokens": max_tokens})
        with contextlib.closing(http.client.HTTPConnection(self._address)) as connection:
            for _ in range(calls):
                began = time.perf_counter()
                try:
                    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                    answer = json.loads(connection.getresponse().read())
                except (OSError, http.client.HTTPException) as error:
                    raise UserError(f"{self._name} cannot be measured: the server does not answer: {error}") from error
                latencies.append(time.perf_counter() - began)
                if "error" in answer:
                    raise UserError(f"{self._name} cannot be measured: {answer['error']['message']}")
                tokens += answer["usage"]["completion_tokens"]
        return latencies, tokens


def start(candidate: Candidate, threads: int, warm_up: str) -> Process | Server:
    """Start a candidate, and wait until it has answered the prompt ``warm_up``.

    Raises:
        UserError: the candidate does not start. None of its processes is left.
    """
    return (Server if candidate.kind == "server" else Process)(candidate, threads, warm_up)


@contextlib.contextmanager
def _stopped_on_failure(candidate: Process | Server) -> Iterator[None]:
    """Stop ``candidate`` if the block fails: the caller of a constructor that fails has no object to stop."""
    try:
        yield
    except BaseException:
        candidate.stop()
        raise


def _answer_batches(pipe: Any, candidate: Candidate, threads: int) -> None:
    try:
        answer = _ANSWERS[candidate.kind](candidate.directory, threads, **candidate.settings)
        while True:
            request = pipe.recv()
            began = time.perf_counter()
            tokens = answer(*request)
            pipe.send((time.perf_counter() - began, tokens))
    except Exception as error:  # raised again in the parent process
        pipe.send(UserError(f"{candidate.name} cannot be measured: {error}"))


def _runner(directory: Path, threads: int) -> Answer:
    from students.runtime import Decoding, decode, encode, load_runner

    runner = load_runner(directory, threads=threads)

    def answer(prompts: list[str], max_tokens: int) -> int:
        inputs = [encode(runner.tokenizer, prompt) for prompt in prompts]
        outputs = runner.generate(inputs, [max_tokens] * len(inputs), Decoding(min_tokens=max_tokens))
        return sum(len(ids) for ids in outputs if decode(runner.tokenizer, ids) is not None)

    return answer


def _transformers(directory: Path, threads: int, dtype: str) -> Answer:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    safe = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": False}
    return _generate(AutoModelForSeq2SeqLM.from_pretrained(directory, **safe).eval(), directory)


def _teacher(directory: Path, threads: int) -> Answer:
    import torch

    from teachers.load import load_teacher

    torch.set_num_threads(threads)
    return _generate(load_teacher(directory, compute_dtype=torch.float32), directory)


def _generate(model: Any, directory: Path) -> Answer:
    """Generation with plain transformers, as users write it."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)

    @torch.inference_mode()
    def answer(prompts: list[str], max_tokens: int) -> int:
        encoded = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
        length = {"max_new_tokens": max_tokens, "min_new_tokens": max_tokens}
        ids = model.generate(**encoded, **length, do_sample=False, num_beams=1)[:, 1:]
        tokenizer.batch_decode(ids, skip_special_tokens=True)
        return ids.numel()

    return answer


_ANSWERS: dict[str, Callable[..., Answer]] = {"runner": _runner, "transformers": _transformers, "teacher": _teacher}
