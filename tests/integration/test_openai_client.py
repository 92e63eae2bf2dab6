"""What a user does first: the OpenAI client against a cluster of simulated replicas."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from openai import NotFoundError, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.integration.cluster import Cluster, until


@pytest.fixture
def client(one_model: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=one_model.openai_url, api_key="none", max_retries=0) as client:
        yield client


def test_chat_answers_with_usage_and_names_request_and_replica(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=[{"role": "user", "content": "Hello!"}], max_tokens=8
    )
    answer = raw.parse()
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert raw.headers["x-slipstream-request-id"]
    assert raw.headers["x-slipstream-replica"].startswith("demo-")


def test_chat_streams_the_same_text_that_it_answers_whole(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story about HAProxy."}]
    whole = client.chat.completions.create(model="demo", messages=messages, max_tokens=24, temperature=0)
    stream = client.chat.completions.create(
        model="demo",
        messages=messages,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage.completion_tokens == 24


def test_completions_and_embeddings(client: OpenAI) -> None:
    completion = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=4)
    assert completion.choices[0].text
    vectors = client.embeddings.create(model="demo", input=["one", "two"])
    assert [v.index for v in vectors.data] == [0, 1]


def test_models_lists_models_and_adapters(client: OpenAI) -> None:
    assert sorted(m.id for m in client.models.list()) == ["demo", "demo-sql"]
    assert client.models.retrieve("demo-sql").id == "demo-sql"
    with pytest.raises(NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


def test_an_adapter_answers_under_its_own_name(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "SELECT"}]
    base = client.chat.completions.create(model="demo", messages=messages, max_tokens=8, temperature=0)
    adapted = client.chat.completions.create(model="demo-sql", messages=messages, max_tokens=8, temperature=0)
    assert adapted.model == "demo-sql"
    assert adapted.choices[0].message.content != base.choices[0].message.content


def test_a_response_is_found_again_on_the_replica_that_made_it(client: OpenAI) -> None:
    for turn in range(6):
        made = client.responses.with_raw_response.create(model="demo", input=f"turn {turn}", max_output_tokens=8)
        response = made.parse()
        found = client.responses.with_raw_response.retrieve(response.id)
        assert found.parse().id == response.id
        assert found.headers["x-slipstream-replica"] == made.headers["x-slipstream-replica"]
        following = client.responses.with_raw_response.create(
            model="demo", input="and then?", previous_response_id=response.id, max_output_tokens=8
        )
        assert following.headers["x-slipstream-replica"] == made.headers["x-slipstream-replica"]


def test_a_background_response_is_cancelled_on_its_replica(client: OpenAI) -> None:
    made = client.responses.with_raw_response.create(
        model="demo", input="take your time", background=True, max_output_tokens=2000
    )
    response = made.parse()
    cancelled = client.responses.with_raw_response.cancel(response.id)
    assert cancelled.parse().status == "cancelled"
    assert cancelled.headers["x-slipstream-replica"] == made.headers["x-slipstream-replica"]


def test_a_response_of_nobody_is_a_coded_404(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.responses.retrieve("resp_deadbeef_00000000000000000000000000000000")
    assert caught.value.code == "response_not_found"


def test_every_request_kind_reaches_a_replica(one_model: Cluster) -> None:
    bodies = {
        "/v1/messages": {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]},
        "/v1/messages/count_tokens": {"model": "demo", "messages": [{"role": "user", "content": "hi"}]},
        "/v1/score": {"model": "demo", "text_1": "a", "text_2": "b"},
        "/score": {"model": "demo", "text_1": "a", "text_2": "b"},
        "/v1/rerank": {"model": "demo", "query": "a", "documents": ["b", "c"]},
        "/v2/rerank": {"model": "demo", "query": "a", "documents": ["b", "c"]},
        "/rerank": {"model": "demo", "query": "a", "documents": ["b", "c"]},
        "/pooling": {"model": "demo", "input": "a"},
        "/classify": {"model": "demo", "input": "a"},
        "/tokenize": {"model": "demo", "prompt": "hello world"},
        "/detokenize": {"model": "demo", "tokens": [104, 105]},
    }
    with httpx2.Client(base_url=one_model.url, trust_env=False) as http:
        for path, body in bodies.items():
            answer = http.post(path, json=body)
            assert answer.status_code == 200, (path, answer.text)
            assert answer.headers["x-slipstream-replica"].startswith("demo-"), path
        for path in ("/v1/audio/transcriptions", "/v1/audio/translations"):
            form = http.post(path, data={"model": "demo"}, files={"file": ("a.wav", b"RIFF" + bytes(8000))})
            assert form.status_code == 200, (path, form.text)


def test_every_decision_has_a_receipt(one_model: Cluster, client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=[{"role": "user", "content": "explain yourself"}], max_tokens=4
    )
    request_id = raw.headers["x-slipstream-request-id"]

    def receipt() -> dict[str, object]:
        found: dict[str, object] = one_model.json("why", request_id)
        return found

    found = until(receipt, lambda r: bool(r.get("completion")), "the receipt knows how the request ended")
    assert str(found["server"]).rpartition(".g")[0] == raw.headers["x-slipstream-replica"].rpartition(".g")[0] or (
        found["server"] == raw.headers["x-slipstream-replica"]
    )
    assert found["model"] == "demo"
    assert found["policy"] == "cost"
    assert len(found["candidates"]) == 3  # type: ignore[arg-type]
    table = one_model.cli("why", request_id).stdout
    assert request_id in table
    assert "candidates, best first" in table
