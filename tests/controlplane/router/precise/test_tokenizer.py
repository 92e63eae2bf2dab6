"""Tokenizers made on the spot: folders, templates, beginnings that are reused, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from controlplane.router.precise import beginnings as module
from controlplane.router.precise.conversation import Unsupported
from controlplane.router.precise.template import ChatTemplate
from controlplane.router.precise.tokenizer import CHAT, COMPLETIONS, ModelTokenizer, UnusableTokenizer, read

TEXT = ["the quick brown fox jumps over the lazy dog", "weather and tools and words", "Ünïcödé 日本語 end"]
CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)
SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(TEXT, trainer)
    made.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return made


def write(folder: Path, tokenizer: Tokenizer, template: object = CHATML, **config: Any) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), byte_level(), bos_token={"content": "<|bos|>"})


@pytest.fixture
def tokenizer(folder: Path) -> ModelTokenizer:
    return ModelTokenizer(folder)


def body(**asked: Any) -> dict[str, Any]:
    return read(json.dumps(asked).encode())


def turn(*texts: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def whole(tokenizer: ModelTokenizer, messages: list[dict[str, str]]) -> list[int]:
    text = tokenizer._chat({"messages": messages})
    return tokenizer._tokenizer.encode(text, add_special_tokens=False).ids


CONTENTS = st.text(st.sampled_from("ab \n日<|>_imstartend"), max_size=40) | st.sampled_from(
    ["<|im_start|>", " <|im_end|>\n"]
)


@given(st.lists(st.lists(CONTENTS, min_size=1, max_size=6), min_size=1, max_size=5))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_reused_beginnings_change_no_token(conversations: list[list[str]]) -> None:
    made = _shared()
    for texts in conversations:
        for end in range(1, len(texts) + 1):
            messages = turn(*texts[:end])
            assert made.tokens(CHAT, body(messages=messages)).tolist() == whole(made, messages)


_made: list[ModelTokenizer] = []


def _shared() -> ModelTokenizer:
    if not _made:
        import tempfile

        with tempfile.TemporaryDirectory() as name:
            _made.append(ModelTokenizer(write(Path(name), byte_level())))
    return _made[0]


def test_a_next_turn_is_tokenised_from_where_the_last_one_ended(tokenizer: ModelTokenizer) -> None:
    seen: list[int] = []
    encode = tokenizer.beginnings._encode

    def counted(text: str) -> Any:
        seen.append(len(text))
        return encode(text)

    tokenizer.beginnings._encode = counted
    first, long = turn("words " * 200), turn("words " * 200, "answer " * 100, "more")
    tokenizer.tokens(CHAT, body(messages=first))
    assert tokenizer.tokens(CHAT, body(messages=long)).tolist() == whole(tokenizer, long)
    assert seen[0] > 1200 and seen[1] < 900
    other = turn("words " * 200, "another answer")  # shares the first message only
    assert tokenizer.tokens(CHAT, body(messages=other)).tolist() == whole(tokenizer, other)
    assert seen[2] < 100


def test_what_is_kept_is_bounded(tokenizer: ModelTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_KEPT_TOKENS", 3_000)
    for number in range(40):
        messages = turn(f"{number} " * 300)
        assert tokenizer.tokens(CHAT, body(messages=messages)).tolist() == whole(tokenizer, messages)
    kept = tokenizer.beginnings
    assert 0 < kept._kept_tokens == sum(len(tokens) for tokens, _ in kept._kept.values()) <= 3_000
    assert set(kept._cuts) == {name for _, names in kept._kept.values() for name in names}


def _strips(made: Tokenizer) -> None:
    made.add_special_tokens([AddedToken("<|strip|>", rstrip=True)])


def _prefixes(made: Tokenizer) -> None:
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


@pytest.mark.parametrize("change", [_strips, _prefixes])
def test_other_kinds_of_tokenizers_give_their_own_tokens(tmp_path: Path, change: Callable[[Tokenizer], None]) -> None:
    raw = byte_level()
    change(raw)
    made = ModelTokenizer(write(tmp_path, raw))
    for texts in (("a b",), ("a b", " c"), ("a b", " c", "<|strip|>  d")):
        messages = turn(*texts)
        assert made.tokens(CHAT, body(messages=messages)).tolist() == whole(made, messages)


def test_completions(tokenizer: ModelTokenizer) -> None:
    plain = tokenizer._tokenizer.encode("the fox", add_special_tokens=False).ids
    assert tokenizer.tokens(COMPLETIONS, body(prompt="the fox")).tolist() == [0, *plain]
    assert tokenizer.tokens(COMPLETIONS, body(prompt=["the fox"])).tolist() == [0, *plain]
    assert tokenizer.tokens(COMPLETIONS, body(prompt="the fox", add_special_tokens=False)).tolist() == plain
    assert tokenizer.tokens(COMPLETIONS, body(prompt=[3, 4])).tolist() == [3, 4]
    assert tokenizer.tokens(COMPLETIONS, body(prompt=[[3, 4]])).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"messages": []}, "malformed"),
        ({"messages": "x"}, "malformed"),
        ({"messages": [{"role": 3}]}, "malformed"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "media"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "developer"),
        ({"messages": [{"role": "system", "content": "x-anthropic-billing-header: 1"}]}, "billing_header"),
        ({"messages": turn("x"), "chat_template": "{{ x }}"}, "chat_template"),
        ({"messages": turn("x"), "documents": [{"text": "x"}]}, "documents"),
        ({"messages": turn("x"), "continue_final_message": True}, "continue_final_message"),
        ({"messages": turn("x"), "truncate_prompt_tokens": 7}, "truncate_prompt_tokens"),
        ({"messages": turn("x"), "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"messages": turn("x"), "tools": [{"type": "function"}]}, "malformed"),
        ({"messages": turn("x" * 1_100_000)}, "too_long"),
    ],
)
def test_what_only_the_engine_can_tell_is_refused(
    tokenizer: ModelTokenizer, asked: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        tokenizer.tokens(CHAT, body(**asked))
    assert caught.value.reason == reason


@pytest.mark.parametrize("content", ["{", '"tokenizer"', "{}"])
def test_a_folder_that_holds_no_tokenizer(tmp_path: Path, content: str) -> None:
    with pytest.raises(UnusableTokenizer):
        ModelTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UnusableTokenizer):
        ModelTokenizer(tmp_path)


@pytest.mark.parametrize("template", ["{% for %}", "x" * 300_000])
def test_a_template_that_cannot_be_used(tmp_path: Path, template: str) -> None:
    with pytest.raises(UnusableTokenizer):
        ModelTokenizer(write(tmp_path, byte_level(), template))


def test_templates_by_name_and_none(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a{{ bos_token }}"}, {"name": "tool_use", "template": "b"}]
    made = ModelTokenizer(write(tmp_path, byte_level(), named, bos_token="<|bos|>"))
    assert made._chat({"messages": turn("x")}) == "a<|bos|>"
    assert made._chat({"messages": turn("x"), "tools": [{"function": {"name": "f"}}]}) == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert ModelTokenizer(tmp_path)._chat({"messages": turn("x")}) == "c"
    none = ModelTokenizer(write(tmp_path, byte_level(), None))
    (tmp_path / "chat_template.jinja").unlink()
    none = ModelTokenizer(tmp_path)
    with pytest.raises(Unsupported, match="no_template"):
        none.tokens(CHAT, body(messages=turn("x")))


def rendered(source: str, **asked: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    made = ModelTokenizer.__new__(ModelTokenizer)
    made._templates = {"default": template}
    return made._chat(asked)


def test_templates_see_what_engines_show_them() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    messages = [
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "why"},
        {
            "role": "tool",
            "tool_call_id": "1",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]
    source = (
        "{% for m in messages %}{{ m.content }}|{{ m.reasoning }}|{{ m.tool_call_id }}|"
        "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}"
    )
    assert rendered(source, messages=messages) == '|why||{"x": 1};a\nb||1|;'
    tool = {"type": "function", "function": {"parameters": {"a": "<é>"}, "name": "f", "more": 1}}
    assert rendered("{{ tools | tojson }}", messages=turn("x"), tools=[tool]) == (
        '[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"a": "<é>"}}}]'
    )
    shown = rendered(
        "{{ enable_thinking }} {{ reasoning_effort }} {{ mine }} {{ not_named is defined }}",
        messages=turn("x"),
        reasoning_effort="low",
        chat_template_kwargs={"mine": 7},
    )
    assert shown == "True low 7 False"


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        (CHATML, False),
        ("{% for m in messages %}{% for c in m['content'] %}{{ c.text }}{% endfor %}{% endfor %}", True),
        (
            "{% set l = messages[1:] %}{% for m in l %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
            True,
        ),
        ("{% set content = messages[0].content %}{% for c in content %}{{ c.text }}{% endfor %}", True),
        (
            "{% macro show(parts) %}{% for p in parts %}{{ p.text }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
            True,
        ),
        (
            "{% macro show(content) %}{% for p in content %}{{ p }}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ m.content }}{{ show(m.role) }}{% endfor %}",
            False,
        ),
    ],
)
def test_templates_that_go_through_the_parts(source: str, takes_parts: bool) -> None:
    assert ChatTemplate(source, {}).takes_parts is takes_parts


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{{ 1 // 0 }}",
        "{{ missing.inner.inner }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_template_that_does_what_it_may_not(source: str) -> None:
    with pytest.raises(Unsupported, match="template_error"):
        rendered(source, messages=turn("x"))
