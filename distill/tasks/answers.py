"""A teacher's answers to inputs, generated once and stored: hard labels for a student (sequence-level distillation).

Source: Kim and Rush 2016, "Sequence-Level Knowledge Distillation" (arXiv:1606.07947).
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from distill.errors import UserError
from distill.generation import generate
from distill.io.disk import require_space
from distill.io.files import check_digests, file_digests, new_directory, read_record, write_record
from distill.io.units import Units
from distill.tasks.prepared import Pairs

_UNIT = 2048  # inputs that are answered together; a killed stage repeats at most one unit
_HINT = "delete its directory and make the answers again with: switch-distill answer"


def make_answers(
    teacher: PreTrainedModel,
    inputs: Sequence[np.ndarray],
    directory: Path,
    *,
    max_length: int,
    beams: int,
    eos: int,
    batch_size: int,
    accelerator: Accelerator,
    origin: dict[str, Any],
    units: Path,
    lead: bool = True,
    on_unit: Callable[[int, int, dict[str, float]], None] = lambda done, total, metrics: None,
) -> None:
    """Answer all inputs. A killed call can be repeated: it continues after the last finished unit.

    Writes answers.npy [tokens] (token ids, each answer with its ``eos`` if it ended within ``max_length``), ends.npy
    [answers], and answers.json with the settings and the SHA-256 of both.

    Other processes, also of other machines, can make units at the same time with ``lead`` false. The bytes are the same
    with any number of them.

    Args:
        teacher: a T5 or Switch model.
        inputs: token ids of each input, with eos.
        directory: of the answers.
        max_length: tokens of an answer, with eos.
        beams: 1 for greedy answers.
        eos: token id.
        batch_size: inputs per forward pass.
        origin: facts about teacher and data for answers.json.
        units: a directory for the answers so far.
        lead: whether to wait for all units and write the files; only one call may. If false, make units until all are
            finished or claimed.
        on_unit: gets the number of answered inputs, of all inputs, and the mean length and the speed of the answers.

    Raises:
        DiskFull: there is no space for the answers.
    """
    facts = {**origin, "answers": len(inputs), "max_length": max_length, "beams": beams}
    record = directory / "answers.json"
    if record.exists() and facts.items() <= read_record(record, _HINT).items():
        return  # the stage was killed after it had written them
    main, order = accelerator.is_main_process, np.argsort([len(one) for one in inputs], kind="stable")
    if main:
        require_space(directory.parent, 4 * max_length * len(inputs), "storing the teacher's answers")
    began, answered = time.perf_counter(), 0
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(Units(units, -(-len(inputs) // _UNIT), facts)) if main else None
        if shared and not lead and record.exists():  # the work was finished, and its directory removed, before
            shared.remove()
            return
        while (number := _next_unit(shared, accelerator, wait=lead)) >= 0:
            rows = order[number * _UNIT : (number + 1) * _UNIT]
            chosen = [inputs[row] for row in rows.tolist()]
            made = generate(
                teacher, chosen, max_length=max_length, batch_size=batch_size, beams=beams, accelerator=accelerator
            )
            if shared:
                shared.finish(number, _arrays([one if len(one) >= max_length else [*one, eos] for one in made]))
            answered += sum(len(one) for one in made)
            speed = answered / (time.perf_counter() - began)
            mean = float(np.mean([len(one) for one in made]))
            done = min(len(shared.done) * _UNIT, len(inputs)) if shared else 0
            on_unit(done, len(inputs), {"answer_tokens": mean, "tokens_per_second": speed})
        if shared and lead:
            _collect(shared, directory, order, facts)
            shared.remove()
    accelerator.wait_for_everyone()


def _next_unit(units: Units | None, accelerator: Accelerator, *, wait: bool) -> int:
    """The number of a unit that the main process, which has ``units``, has claimed; -1 if there is none.

    With ``wait``, it is -1 only after all units are finished and whole.
    """
    while True:
        number = -1
        if units is not None and (claimed := units.claim()) is not None:
            number = claimed
        elif units is not None and wait and not units.all_finished():
            number = -2  # others have claimed the rest, or one is damaged
        if accelerator.num_processes > 1:
            (number,) = broadcast_object_list([number])  # often enough for the time limit of its processes
        if number != -2:
            return number
        time.sleep(0.5)


def read_answers(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """The token ids of all answers [tokens] int64, and the position after each answer [answers].

    Raises:
        UserError: a file is missing or damaged.
    """
    record = read_record(directory / "answers.json", _HINT)
    check_digests(directory, record["sha256"], _HINT)
    tokens, ends = (np.load(directory / f"{name}.npy", allow_pickle=False) for name in ("answers", "ends"))
    return tokens.astype(np.int64), ends


def with_answers(parts: Sequence[Pairs], answers: tuple[np.ndarray, np.ndarray]) -> Pairs:
    """The inputs of ``parts``, one after the other, with the answers as their targets."""
    tokens, ends = answers
    given = [one for part in parts for one in zip(part.starts, part.middles, strict=True)]
    if len(given) != len(ends):
        raise UserError(f"there are {len(ends):,} answers for {len(given):,} inputs; {_HINT}")
    texts = [part.tokens for part in parts]
    offsets = np.repeat(np.cumsum([0, *(len(text) for text in texts[:-1])]), [len(part.starts) for part in parts])
    starts = np.concatenate([part.starts for part in parts]) + offsets
    middles = np.concatenate([part.middles for part in parts]) + offsets
    inputs, lengths = np.concatenate(texts), middles - starts
    answer_starts = np.concatenate([[0], ends[:-1]])
    joined_ends = np.cumsum(lengths + ends - answer_starts)
    joined_starts = np.concatenate([[0], joined_ends[:-1]])
    joined = np.empty(int(joined_ends[-1]), np.int64)
    joined[_ranges(joined_starts, lengths)] = inputs[_ranges(starts, lengths)]
    joined[_ranges(joined_starts + lengths, ends - answer_starts)] = tokens
    sources = np.concatenate([part.sources for part in parts])
    return Pairs(joined, joined_starts, joined_starts + lengths, joined_ends, sources)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All positions of several ranges, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(before - starts, lengths)


def _arrays(answers: list[list[int]]) -> dict[str, np.ndarray]:
    """The content of a unit."""
    tokens = np.concatenate([np.asarray(one, np.uint32) for one in answers])
    return {"tokens": tokens, "lengths": np.array([len(one) for one in answers])}


def _collect(units: Units, directory: Path, order: np.ndarray, facts: dict[str, Any]) -> None:
    """Write the answers of all units in the order of the inputs."""
    stored = [one for number in range(units.count) if (one := units.read(number)) is not None]
    tokens = np.concatenate([one["tokens"] for one in stored])
    lengths = np.concatenate([one["lengths"] for one in stored])
    starts, place = np.cumsum(lengths) - lengths, np.argsort(order)
    with new_directory(directory) as tmp_dir:
        np.save(tmp_dir / "answers.npy", tokens[_ranges(starts[place], lengths[place])])
        np.save(tmp_dir / "ends.npy", np.cumsum(lengths[place]))
        digests = file_digests(tmp_dir, tmp_dir.iterdir())
        write_record(tmp_dir / "answers.json", {**facts, "tokens": int(lengths.sum()), "sha256": digests})
