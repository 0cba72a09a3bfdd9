"""What is answered, in OpenAI's shape: a completion, or the events of a stream."""

import json
import time
import uuid
from collections.abc import Iterable
from typing import Any

DONE = "data: [DONE]\n\n"


def head(model: str) -> dict[str, Any]:
    """What a completion and every chunk of one have in common."""
    return {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()), "model": model}


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    """The answer to a prompt, or a piece of it."""
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def usage(inputs: Iterable[list[int]], outputs: Iterable[list[int]]) -> dict[str, int]:
    """The tokens of prompts and answers, ``</s>`` included."""
    prompt_tokens, completion_tokens = sum(map(len, inputs)), sum(map(len, outputs))
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(data: dict[str, Any]) -> str:
    """A server-sent event. It is ASCII: there are readers to which other characters end a line."""
    return f"data: {json.dumps(data)}\n\n"
