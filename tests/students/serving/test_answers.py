"""The text of an answer token by token, against the decoded text of all tokens, truncated by ``str.find``."""

import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from students.runtime import decode
from students.serving.answers import Answer, find_stop
from tests.students.serving.echo_server import make_tokenizer

TEXT = "Grüße, 世界! \U0001f40d\U0001d11e é <extra_id_0> aab <extra_id_1> abab \ufffd the end"


def words_of(words: list[str], decoder: decoders.Decoder) -> Tokenizer:
    words = ["<pad>", "</s>", "<unk>", *words, "<extra_id_0>"]
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_tokens([AddedToken(word, special=True) for word in ("<pad>", "</s>", "<unk>", "<extra_id_0>")])
    tokenizer.decoder = decoder
    return tokenizer


def tokenizer_of(kind: str) -> tuple[Tokenizer, list[int]]:
    """A tokenizer, and the ids from which answers are drawn."""
    if kind == "bytes":  # like the tokenizers that this project trains
        return make_tokenizer(), make_tokenizer().encode(TEXT).ids[:-1]
    if kind == "sentencepiece":  # like T5's
        tokenizer = words_of(["▁", "▁aa", "a", "b", "▁b", "▁世", "界", ".", "▁▁"], decoders.Metaspace())
        return tokenizer, list(range(3, tokenizer.get_vocab_size()))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    pieces = [f"<0x{byte:02X}>" for byte in "aé世".encode()]
    tokenizer = words_of(["▁a", "b", "a", *pieces], decoders.Sequence(steps))
    return tokenizer, list(range(3, tokenizer.get_vocab_size()))


def read(answer: Answer, ids: list[int]) -> int:
    """Add tokens until the answer ends. Returns the number of added tokens."""
    for number, id_ in enumerate(ids, 1):
        if answer.add(id_):
            return number
    pytest.fail("the answer did not end")


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "byte fallback"])
def test_the_pieces_are_the_text_up_to_its_first_stop(kind):
    tokenizer, ids = tokenizer_of(kind)
    drawn, cut = random.Random(0), 0
    for _ in range(1500):
        start = drawn.randrange(len(ids))
        row = (ids[start:] + ids if drawn.random() < 0.5 else drawn.choices(ids, k=40))[: drawn.randrange(1, 40)]
        whole = decode(tokenizer, row)
        places = [drawn.randrange(len(whole) + 1) for _ in range(drawn.randrange(4))]
        stops = [stop for at in places if (stop := whole[at : at + drawn.randrange(1, 5)])]
        stops += [stop[:-1] + "b" for stop in stops[:1]]  # begins like another one and may not occur
        pieces: list[tuple[str, str | None]] = []
        answer = Answer(tokenizer, len(row), stops, on_text=lambda *piece, pieces=pieces: pieces.append(piece))
        taken = read(answer, row)
        found = [whole.find(stop) for stop in stops if stop in whole]
        assert "".join(piece for piece, _ in pieces) == answer.text == whole[: min(found, default=None)]
        assert [reason for _, reason in pieces] == [None] * (len(pieces) - 1) + ["stop" if found else "length"]
        assert all(piece for piece, _ in pieces[:-1]) and answer.ids == row[:taken]
        cut += taken < len(row)
    assert cut > 200  # many answers end before their last token


def test_an_incomplete_character_is_held_back():
    tokenizer, pieces = make_tokenizer(), []
    answer = Answer(tokenizer, 99, on_text=lambda *piece: pieces.append(piece))
    read(answer, tokenizer.encode("a\U0001f40db").ids)
    assert pieces == [("a", None), ("\U0001f40d", None), ("b", None), ("", "stop")]


def test_the_beginning_of_a_stop_sequence_is_held_back():
    tokenizer, pieces = make_tokenizer(), []
    answer = Answer(tokenizer, 99, ["abc"], on_text=lambda *piece: pieces.append(piece))
    read(answer, tokenizer.encode("ababdab").ids)
    assert pieces == [("ab", None), ("abd", None), ("ab", "stop")]


@pytest.mark.parametrize(
    "text, max_tokens, reason", [("hello", 6, "stop"), ("hello", 5, "length"), ("hello.", 99, "stop"), (".", 1, "stop")]
)
def test_the_finish_reason_of_an_answer(text, max_tokens, reason):
    tokenizer = make_tokenizer()
    answer = Answer(tokenizer, max_tokens, ["."])
    read(answer, tokenizer.encode(text).ids)
    assert (answer.text, answer.finish_reason) == (text.rstrip("."), reason)


@pytest.mark.parametrize("min_tokens, text", [(0, "a"), (1, "a"), (2, "a-b"), (3, "a-b"), (4, "a-b-c"), (9, "a-b-c")])
def test_stop_sequences_are_searched_for_after_min_tokens(min_tokens, text):
    tokenizer = make_tokenizer()
    answer = Answer(tokenizer, 99, ["-"], min_tokens)
    read(answer, tokenizer.encode("a-b-c").ids)
    assert answer.text == text


def test_add_all_gives_the_same_answer_as_add():
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(TEXT).ids
    for taken in (1, 2, 3, len(ids)):
        one_by_one, at_once = Answer(tokenizer, taken), Answer(tokenizer, taken)
        read(one_by_one, ids)
        at_once.add_all(ids[:taken])
        for name in ("text", "ids", "finish_reason"):
            assert getattr(one_by_one, name) == getattr(at_once, name)


def test_a_regenerated_answer_is_not_sent_twice_and_must_not_differ():
    tokenizer, pieces = make_tokenizer(), []
    ids = tokenizer.encode("hello").ids
    answer = Answer(tokenizer, 99, on_text=lambda *piece: pieces.append(piece))
    for id_ in ids[:3]:
        answer.add(id_)
    answer.reset()
    read(answer, ids)
    assert pieces == [(letter, None) for letter in "hello"] + [("", "stop")]

    other = Answer(tokenizer, 99, on_text=lambda *piece: None)
    for id_ in ids[:3]:
        other.add(id_)
    other.reset()
    with pytest.raises(RuntimeError, match="generated again and differs"):
        read(other, tokenizer.encode("hop").ids)


@pytest.mark.parametrize(
    "text, stops, so_far, complete",
    [
        ("abc", [], (3, False), (3, False)),
        ("abc", ["c"], (2, True), (2, True)),
        ("abc", ["cd"], (2, False), (3, False)),
        ("abc", ["bcd", "c"], (1, False), (2, True)),  # the stop sequence that begins first counts if it is completed
        ("abc", ["bc", "abcd"], (0, False), (1, True)),
        ("abcabc", ["abc"], (0, True), (0, True)),
        ("aab", ["ab"], (1, True), (1, True)),
        ("aaa", ["aaaa"], (0, False), (3, False)),
        ("", ["a"], (0, False), (0, False)),
    ],
)
def test_find_stop(text, stops, so_far, complete):
    assert find_stop(text, 0, stops, False) == so_far
    assert find_stop(text, 0, stops, True) == complete
