"""The arms of ``switch-distill bench-serving``: each is a process of its own that answers when it is asked.

Processes of their own, because threads and memory are settings of a process, and a server is one. Imports no torch.
"""

import http.client
import json
import multiprocessing
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psutil

Answer = Callable[[list[str], int], int]  # texts, most tokens of each answer -> tokens of all answers


@dataclass(frozen=True, eq=False)
class Arm:
    """``kind``: transformers, teacher, runner or server; ``settings`` are those of the kind."""

    name: str
    kind: str
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)


class Measured(NamedTuple):
    """Answers to one wave of requests: seconds of all together and of each, and the tokens of all answers."""

    seconds: float
    latencies: list[float]
    tokens: int


class Process:
    """A model in a process that answers batches: ``concurrency`` requests are one batch."""

    def __init__(self, arm: Arm, threads: int, warm_up: str):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        began = time.perf_counter()
        self._process = context.Process(target=_answer_batches, args=(theirs, arm, threads), daemon=True)
        self._process.start()
        self._ask([warm_up], 4)
        self.start_seconds = time.perf_counter() - began

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def measure(self, prompts: list[str], max_tokens: int, calls: int) -> Measured:
        latencies, tokens = [], 0
        for _ in range(calls):
            seconds, made = self._ask(prompts, max_tokens)
            latencies += [seconds] * len(prompts)
            tokens += made
        return Measured(sum(latencies) / len(prompts), latencies, tokens)

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join()

    def _ask(self, prompts: list[str], max_tokens: int) -> tuple[float, int]:
        self._pipe.send((prompts, max_tokens))
        reply = self._pipe.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply


class Server:
    """``switch-distill serve``: ``concurrency`` requests are as many clients, each with a connection of its own."""

    def __init__(self, arm: Arm, threads: int, warm_up: str):
        options = [f"--{name}={value}" for name, value in arm.settings.items()]
        command = ["serve", str(arm.directory), "--port=0", f"--threads={threads}", *options]
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *command], stderr=subprocess.PIPE, text=True
        )
        said = ""
        while not (found := re.search(r" on (http://\S+);", said)):
            line = self._process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {said}")
            said += line
        self.start_seconds = time.perf_counter() - began
        self._address = urlsplit(found[1]).netloc
        self.measure([warm_up], 4, 1)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self._process.pid).memory_info().rss

    def measure(self, prompts: list[str], max_tokens: int, calls: int) -> Measured:
        with ThreadPoolExecutor(len(prompts)) as clients:
            began = time.perf_counter()
            each = list(clients.map(lambda prompt: self._client(prompt, max_tokens, calls), prompts))
            seconds = time.perf_counter() - began
        return Measured(seconds, [one for found, _ in each for one in found], sum(tokens for _, tokens in each))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._process.stderr.close()

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


def start(arm: Arm, threads: int, warm_up: str) -> Process | Server:
    """Start an arm; it has answered ``warm_up`` once when this returns."""
    return (Server if arm.kind == "server" else Process)(arm, threads, warm_up)


def _answer_batches(pipe: Any, arm: Arm, threads: int) -> None:
    try:
        answer = _ANSWERS[arm.kind](arm.directory, threads, **arm.settings)
        while request := pipe.recv():
            began = time.perf_counter()
            tokens = answer(*request)
            pipe.send((time.perf_counter() - began, tokens))
    except Exception as error:  # said by the process that asked
        pipe.send(RuntimeError(f"{arm.name}: {error}"))


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

    from teachers.model import load_teacher

    torch.set_num_threads(threads)
    return _generate(load_teacher(directory), directory)


def _generate(model: Any, directory: Path) -> Answer:
    """What one writes with transformers alone."""
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


_ANSWERS = {"runner": _runner, "transformers": _transformers, "teacher": _teacher}
