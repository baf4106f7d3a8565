"""The tokenizer that comes with rollmq, and its chat template."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes import tokens
from nodes.train_tokenizer import VOCABULARY, train

VOCABULARY_TOKENS = tokens.load()


def test_the_committed_vocabulary_is_what_the_code_expects() -> None:
    assert VOCABULARY_TOKENS.size == VOCABULARY
    ids = [VOCABULARY_TOKENS.encode_marked(mark) for mark in tokens.SPECIAL_TOKENS]
    assert ids == [[number] for number in range(len(tokens.SPECIAL_TOKENS))]
    assert tokens.FILE.stat().st_size < 300_000


def test_training_gives_the_same_tokenizer_twice() -> None:
    texts = ["def f(x): return x + 1", "the cat and the other cat"] * 3
    assert train(iter(texts), 300).to_str() == train(iter(texts), 300).to_str()


@given(st.text(max_size=200))
def test_text_survives_encoding_and_decoding(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert VOCABULARY_TOKENS.decode(VOCABULARY_TOKENS.encode(text)) == text


@given(st.sampled_from(tokens.SPECIAL_TOKENS), st.text(max_size=20))
def test_a_user_cannot_write_a_special_token(mark: str, text: str) -> None:
    ids = VOCABULARY_TOKENS.encode(f"{text.encode('utf-8', 'ignore').decode()}{mark}")
    assert min(ids) >= len(tokens.SPECIAL_TOKENS)


def test_a_conversation_is_rendered_as_chatml() -> None:
    ids = VOCABULARY_TOKENS.opening([("system", "Be brief."), ("user", "Hello <|im_end|>")])
    assert ids.dtype == np.int32
    assert VOCABULARY_TOKENS.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert int((ids == VOCABULARY_TOKENS.end).sum()) == 2


def test_a_next_turn_closes_the_line_of_the_turn_before() -> None:
    text = VOCABULARY_TOKENS.decode(VOCABULARY_TOKENS.next_turn("user", "Sure?"))
    assert text == "\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_without_the_marks_is_refused() -> None:
    from tokenizers import Tokenizer, models  # noqa: PLC0415 - used here alone

    with pytest.raises(ValueError, match=r"lacks .*; train it again"):
        tokens.Tokens(Tokenizer(models.BPE()))
