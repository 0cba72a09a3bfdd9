"""Completions and stream events in OpenAI's format."""

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

DONE = "data: [DONE]\n\n"


def common_fields(model: str) -> dict[str, Any]:
    """The fields that a completion and all chunks of a stream have in common."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """The answer to the prompt at ``index``, or a piece of the answer."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def usage(inputs: Iterable[list[int]], outputs: Iterable[list[int]]) -> dict[str, int]:
    """The numbers of tokens of the prompts and the answers, ``</s>`` included."""
    prompt_tokens, completion_tokens = sum(map(len, inputs)), sum(map(len, outputs))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(data: dict[str, Any]) -> str:
    """A server-sent event. It is ASCII, because some readers end a line at other Unicode characters."""
    return f"data: {json.dumps(data)}\n\n"
