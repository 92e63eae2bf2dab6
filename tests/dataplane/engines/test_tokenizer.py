"""Text survives tokenizing, and a text keeps its tokens whatever follows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.engines.simulated import text
from dataplane.engines.simulated.prompts import render
from dataplane.engines.simulated.tokenizer import decode, encode
from tests.dataplane.engines.replicas import Running


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text())
def test_round_trip(given_text: str) -> None:
    assert decode(encode(given_text)) == given_text


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, (1 << 32) - 1), max_size=20))
def test_any_token_ids_decode(tokens: list[int]) -> None:
    decode(tokens)


def test_a_spoken_answer_has_the_tokens_that_its_text_has() -> None:
    seed = text.seed_of(encode("hello"), "")
    said = text.say(seed, 0, 20)
    assert encode(said.decode()).tolist() == [text.token(text.piece(seed, i)) for i in range(20)]


def test_the_next_turn_begins_with_the_tokens_of_the_last() -> None:
    turn = [{"role": "user", "content": "hello there"}]
    reply = text.say(text.seed_of(render(turn), ""), 0, 5).decode()
    before = render(turn) + encode(reply)
    after = render([*turn, {"role": "assistant", "content": reply}, {"role": "user", "content": "and?"}])
    assert after[: len(before)] == before


def test_over_http(server: Running) -> None:
    said = "naïve ☃ text"
    tokens = server.post("/tokenize", {"model": "tiny", "prompt": said}).json()["tokens"]
    assert server.post("/detokenize", {"model": "tiny", "tokens": tokens}).json() == {"prompt": said}
