"""The candidates of ``switch-distill bench-serving``: models and servers that answer requests, each in its own process.

Each has its own process, because the number of threads and the memory belong to a process. Imports no torch.
"""

import http.client
import json
import multiprocessing
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

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
            RuntimeError: the model cannot be loaded or run.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        began = time.perf_counter()
        self._process = context.Process(target=_answer_batches, args=(theirs, candidate, threads), daemon=True)
        self._process.start()
        self._ask([warm_up], 4)
        self.start_seconds = time.perf_counter() - began

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def measure(self, prompts: list[str], max_tokens: int, calls: int) -> WaveTiming:
        """Answer the batch ``prompts`` ``calls`` times, with ``max_tokens`` tokens per answer."""
        latencies, tokens = [], 0
        for _ in range(calls):
            seconds, made = self._ask(prompts, max_tokens)
            latencies += [seconds] * len(prompts)
            tokens += made
        return WaveTiming(sum(latencies) / len(prompts), latencies, tokens)

    def stop(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()

    def _ask(self, prompts: list[str], max_tokens: int) -> tuple[float, int]:
        self._pipe.send((prompts, max_tokens))
        reply = self._pipe.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply


class Server:
    """A process of ``switch-distill serve``. Concurrent requests come from clients with separate connections."""

    def __init__(self, candidate: Candidate, threads: int, warm_up: str):
        """Start the server with ``threads`` threads, and wait until it has answered the prompt ``warm_up``.

        Raises:
            RuntimeError: the server does not start, or answers with an error.
        """
        options = [f"--{name}={value}" for name, value in candidate.settings.items()]
        command = ["serve", str(candidate.directory), "--port=0", f"--threads={threads}", *options]
        began = time.perf_counter()
        self._process = subprocess.Popen(module_command("pipelines.cli", *command), stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None  # it is a pipe
        self._stderr, output = self._process.stderr, ""
        while not (found := re.search(r" on (http://\S+);", output)):
            line = self._stderr.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {output}")
            output += line
        self.start_seconds = time.perf_counter() - began
        self._address = urlsplit(found[1]).netloc
        self.measure([warm_up], 4, 1)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def measure(self, prompts: list[str], max_tokens: int, calls: int) -> WaveTiming:
        """Send ``calls`` requests per prompt, one client per prompt, with ``max_tokens`` tokens per answer."""
        with ThreadPoolExecutor(len(prompts)) as clients:
            began = time.perf_counter()
            each = list(clients.map(lambda prompt: self._client(prompt, max_tokens, calls), prompts))
            seconds = time.perf_counter() - began
        return WaveTiming(seconds, [one for found, _ in each for one in found], sum(tokens for _, tokens in each))

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._stderr.close()

    def _client(self, prompt: str, max_tokens: int, calls: int) -> tuple[list[float], int]:
        connection, latencies, tokens = http.client.HTTPConnection(self._address), [], 0
        body = json.dumps({"prompt": prompt, "max_tokens": max_tokens, "min_tokens": max_tokens})
        for _ in range(calls):
            began = time.perf_counter()
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            latencies.append(time.perf_counter() - began)
            if "error" in answer:
                raise RuntimeError(answer["error"]["message"])
            tokens += answer["usage"]["completion_tokens"]
        connection.close()
        return latencies, tokens


def start(candidate: Candidate, threads: int, warm_up: str) -> Process | Server:
    """Start a candidate, and wait until it has answered the prompt ``warm_up``.

    Raises:
        RuntimeError: the candidate does not start.
    """
    return (Server if candidate.kind == "server" else Process)(candidate, threads, warm_up)


def _answer_batches(pipe: Any, candidate: Candidate, threads: int) -> None:
    try:
        answer = _ANSWERS[candidate.kind](candidate.directory, threads, **candidate.settings)
        while request := pipe.recv():
            began = time.perf_counter()
            tokens = answer(*request)
            pipe.send((time.perf_counter() - began, tokens))
    except Exception as error:  # raised again in the parent process
        pipe.send(RuntimeError(f"{candidate.name}: {error}"))


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
