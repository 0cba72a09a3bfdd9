"""The text of an answer while its tokens are generated, up to its first stop sequence."""

import re
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from students.runtime import decode, omitted_ids

# A byte token. The decoder ByteFallback turns only complete runs of byte tokens into characters.
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def find_stop(text: str, start: int, stops: Sequence[str], complete: bool) -> tuple[int, bool]:
    """Find the first stop sequence at or after ``start``.

    Args:
        text: the text of an answer so far.
        start: the index from which to search.
        stops: the stop sequences, none of them empty.
        complete: whether no more text follows. If more text follows, a stop sequence may begin at the end of ``text``.

    Returns:
        The index where a stop sequence begins or may begin, or the length of ``text``; and whether a complete stop
        sequence begins there. The text before the index belongs to the answer.
    """
    found = min((at for stop in stops if (at := text.find(stop, start)) >= 0), default=len(text))
    if not complete:
        longest = max(map(len, stops), default=0)
        for at in range(max(start, len(text) - longest + 1), found):
            if any(stop.startswith(text[at:]) for stop in stops):
                return at, False
    return found, found < len(text)


class Answer:
    """One answer. Its text is that of ``decode`` for its tokens, up to the first stop sequence.

    ``on_text`` receives the text in pieces. A piece is complete: it ends neither within a character nor where a stop
    sequence may have begun.

    Attributes:
        text: the text so far.
        ids: the token ids so far.
        finish_reason: "stop" or "length" once the answer has ended, else None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        on_text: Callable[[str, str | None], None] | None = None,
    ):
        """Make an answer without tokens.

        Args:
            max_tokens: the number of tokens at which the answer ends at the latest.
            stops: the stop sequences, none of them empty.
            min_tokens: the number of first tokens that are not searched for stop sequences.
            on_text: called with each new piece of the text and the finish reason (None before the end).
        """
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._stops, self._min_tokens = stops, min_tokens
        self._on_text, self._sent = on_text, ""
        self._end, self._omitted = tokenizer.token_to_id("</s>"), omitted_ids(tokenizer)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens, because the answer is generated (again) from its first token."""
        self.text = ""
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self._decoded, self._certain = "", 0  # the text with stop sequences, and the length of the answer's text in it
        self._stream = DecodeStream(skip_special_tokens=False)
        self._pending: list[int] = []

    def add(self, id_: int) -> bool:
        """Add the next token. Returns whether the answer ends with it.

        Raises:
            RuntimeError: the answer is generated again and differs from the text that ``on_text`` has received.
        """
        self.ids.append(id_)
        last = id_ == self._end or len(self.ids) == self._max_tokens
        self._decoded = decode(self._tokenizer, self.ids) if last else self._decoded + self._next_piece(id_)
        if len(self.ids) <= self._min_tokens:
            self._certain = len(self._decoded)
        self._certain, stopped = find_stop(self._decoded, self._certain, self._stops, last)
        self.text = self._decoded[: self._certain]
        if stopped or last:
            self.finish_reason = "stop" if stopped or id_ == self._end else "length"
        if self._on_text is not None:
            self._send_new_text(self._on_text)
        return self.finish_reason is not None

    def add_all(self, ids: list[int]) -> None:
        """Add all tokens of an answer without stop sequences at once."""
        self.ids = ids[:-1]
        self.add(ids[-1])

    def _next_piece(self, id_: int) -> str:
        if id_ in self._omitted:
            return ""
        self._pending.append(id_)
        if _BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(id_) or ""):
            return ""
        pending, self._pending = self._pending, []
        return self._stream.step(self._tokenizer, pending) or ""

    def _send_new_text(self, on_text: Callable[[str, str | None], None]) -> None:
        if self.text.startswith(self._sent):
            piece, self._sent = self.text[len(self._sent) :], self.text
            if piece or self.finish_reason:
                on_text(piece, self.finish_reason)
        elif self.finish_reason or not self._sent.startswith(self.text):
            raise RuntimeError("an answer was generated again and differs from the text that was sent")
