"""The openai package works against the simulated engine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import openai
import pytest

from tests.dataplane.engines.replicas import PIN, Running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def _ask(client: openai.OpenAI, model: str = "tiny", text: str = "hi") -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    return answer.choices[0].message.content or ""


def test_chat_is_a_function_of_prompt_and_adapter(client: openai.OpenAI) -> None:
    assert _ask(client) == _ask(client)
    assert _ask(client) != _ask(client, text="ho")
    assert _ask(client) != _ask(client, model="tiny-lora")


def test_chat_stream_says_the_same(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == _ask(client)
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + 8


def test_an_answer_without_limit_ends_by_itself(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].finish_reason == "stop"


def test_stop_strings_cut_the_text(client: openai.OpenAI) -> None:
    whole = _ask(client)
    stop = whole[9:12]
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=8, stop=[stop]
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=8, stop=[stop], stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == whole[: whole.index(stop)]


def test_completions_models_embeddings(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [model.id for model in client.models.list()] == ["tiny", "tiny-lora"]
    vectors = client.embeddings.create(model="tiny", input=["a", "b"], dimensions=8).data
    assert [len(vector.embedding) for vector in vectors] == [8, 8]
    assert abs(sum(x * x for x in vectors[0].embedding) - 1) < 1e-5


def test_responses_are_stored_and_continued(client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input="hi", max_output_tokens=4)
    assert first.id.startswith(f"resp_{PIN}_")
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(model="tiny", input="more", previous_response_id=first.id, max_output_tokens=4)
    assert first.usage is not None and second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    events = [e.type for e in client.responses.create(model="tiny", input="hi", max_output_tokens=2, stream=True)]
    assert events[0] == "response.created" and events[-1] == "response.completed"


def test_background_responses(client: openai.OpenAI, server: Running) -> None:
    done = client.responses.create(model="tiny", input="hi", max_output_tokens=4, background=True)
    assert done.status == "queued"
    end = time.monotonic() + 10
    while client.responses.retrieve(done.id).status == "queued":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert client.responses.retrieve(done.id).output_text
    server.post("/simulated/faults", {"token_delay_s": 0.05})
    long = client.responses.create(model="tiny", input="hi", max_output_tokens=1900, background=True)
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"
    server.post("/simulated/faults", {"token_delay_s": 0})


def test_a_background_stream_can_be_taken_up_again(client: openai.OpenAI) -> None:
    stream = client.responses.create(model="tiny", input="hi", max_output_tokens=3, background=True, stream=True)
    events = list(stream)
    response_id = events[0].response.id  # type: ignore[union-attr]
    again = list(client.responses.retrieve(response_id, stream=True, starting_after=4))
    assert [e.sequence_number for e in again] == [e.sequence_number for e in events[5:]]


def test_audio(client: openai.OpenAI) -> None:
    sound = ("sound.wav", bytes(64_000))
    answer = client.audio.transcriptions.create(model="tiny", file=sound)
    assert len(answer.text) == 4 * 8  # two seconds of four tokens
    with pytest.warns(DeprecationWarning):
        assert client.audio.translations.create(model="tiny", file=sound).text


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        _ask(client, model="nope")
