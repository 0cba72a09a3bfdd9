"""What a tokenizer loses of a text: unknown words, and characters that decoding does not give back."""

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

_CHARACTERS = 10_000  # of a sampled text
_NAMES = {"\n": "line breaks", "\t": "tabs", "\r": "carriage returns", " ": "spaces"}


class RoundTrip(NamedTuple):
    """How much of a text survives encoding and decoding; shares from 0 to 1."""

    unknown_share: float  # of all tokens, those that stand for what the tokenizer does not know
    restored_share: float  # of the sampled texts, those that decoding gives back exactly
    lost_share: float  # of the characters of the sampled texts, those that decoding does not give back
    most_lost: list[str]  # the characters that are lost most often, at most five
    sampled: int  # texts

    @property
    def sentence(self) -> str:
        """The figures in words."""
        most = f", most often {', '.join(_NAMES.get(one, repr(one)) for one in self.most_lost)}" * bool(self.most_lost)
        return (
            f"{self.unknown_share:.1%} of the tokens are unknown words; decoding gives back {self.restored_share:.0%} "
            f"of {self.sampled:,} sampled texts exactly and loses {self.lost_share:.1%} of their characters{most}"
        )


class RoundTripCounter:
    """Counts what is lost while a corpus is cut into tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._tokenizer, self._unknown_id = tokenizer, unknown_id(tokenizer)
        self._tokens = self._unknown = self._texts = self._restored = self._characters = 0
        self._lost: Counter[str] = Counter()

    def count(self, ids: list[int]) -> None:
        """Count the unknown words among the tokens of a text."""
        self._tokens += len(ids)
        self._unknown += ids.count(self._unknown_id)

    def sample(self, text: str) -> None:
        """Encode and decode the beginning of ``text``."""
        from distill.tokenizer import encode

        text = text[:_CHARACTERS]
        decoded = self._tokenizer.backend_tokenizer.decode(encode(self._tokenizer, [text])[0])
        self._texts += 1
        self._restored += decoded == text
        self._characters += len(text)
        self._lost += Counter(text) - Counter(decoded)  # which is 0 for each character that is there as often

    def result(self) -> RoundTrip:
        """What was counted so far."""
        return RoundTrip(
            unknown_share=self._unknown / max(self._tokens, 1),
            restored_share=self._restored / max(self._texts, 1),
            lost_share=self._lost.total() / max(self._characters, 1),
            most_lost=[character for character, _ in self._lost.most_common(5)],
            sampled=self._texts,
        )


def unknown_id(tokenizer: "PreTrainedTokenizerFast") -> int | None:
    """The id that stands for what the tokenizer does not know, or None where it knows every text."""
    if tokenizer.unk_token_id is not None:
        return tokenizer.unk_token_id
    word = getattr(tokenizer.backend_tokenizer.model, "unk_token", None)
    return tokenizer.backend_tokenizer.token_to_id(word) if word else None
