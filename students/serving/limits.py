"""The limits of requests and batches."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a server. Lengths are in tokens, times in seconds."""

    max_batch: int = 32  # prompts in one batch, and in one request
    max_batch_tokens: int = 8192  # padded tokens of the inputs and outputs of a batch, which bound its memory
    max_queue: int = 256  # waiting prompts; requests beyond are answered 429
    max_input: int = 512
    max_output: int = 256
    max_body: int = 1 << 20  # bytes
    timeout: float = 60.0  # from the first byte of a request to the end of its answer
    wait: float = 0.005  # the time that a batch that is not full waits for more prompts
