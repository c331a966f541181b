"""What is trained is what a naive account says, whatever the messages hold."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chat import (
    TEMPLATES,
    answers,
    conversation,
    harmless_text,
    naive_spans,
    plain_messages,
    plain_text,
    tiny_template,
    tiny_tokenizer,
    wild_text,
)

from finetooth.data.masks.masking import RenderReport, render_documents, render_with_report
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import LossOn, MaskOptions
from finetooth.data.records import Conversation, Document, Message, Origin
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from finetooth.data.tokenizer.twin import Twin

FAITHFUL = ("chatml", "trimming", "headers")  # these do not rewrite history
STOPS = dict.fromkeys(TEMPLATES, "<|im_end|>") | {"headers": "<|end_of_text|>"}


def rendered(template: Template, talk: Conversation, loss_on: LossOn = "assistant") -> tuple[Document, ...]:
    [documents] = render_documents([talk], template, options=MaskOptions(loss_on=loss_on))
    assert not isinstance(documents, Refusal), documents
    return documents


def target_texts(document: Document, tokenizer: Tokenizer) -> list[str]:
    """The text of each unbroken run of targets."""
    edges = np.flatnonzero(np.diff(document.loss_weights, prepend=0, append=0))
    return [tokenizer.decode(document.token_ids[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


def control_ids(token_ids: list[int], tokenizer: Tokenizer) -> list[int]:
    known = set(tokenizer.control_tokens.values())
    return [token_id for token_id in token_ids if token_id in known]


def assert_naive_mask(template: Template, talk: Conversation, document: Document, stop: str) -> None:
    """Compares with the plain tokenizer's ids and offsets in the plainly rendered text."""
    text, spans = naive_spans(template, talk, stop)
    encoding = template.tokenizer.backend.encode(text, add_special_tokens=False)
    expected = [any(a <= begin and end <= b for a, b in spans) for begin, end in encoding.offsets]
    assert document.token_ids.tolist() == encoding.ids
    assert (document.loss_weights == 1).tolist() == expected
    assert set(document.loss_weights) <= {0, 1}


def assert_every_turn_is_proved(template: Template, talk: Conversation, stop: str) -> None:
    """Whatever the messages hold: text, control tokens, prompts and targets are the template's."""
    tokenizer = template.tokenizer
    messages = plain_messages(talk)
    harmless = [message | {"content": "x"} for message in messages]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    through = {plain_text(template, messages[: i + 1], add_generation_prompt=False): i for i in turns}
    num_targets = 0
    for document in rendered(template, talk):
        token_ids = document.token_ids.tolist()
        last = through[tokenizer.decode(token_ids)]
        text = plain_text(template, harmless[: last + 1], add_generation_prompt=False)
        expected = control_ids(tokenizer.backend.encode(text, add_special_tokens=False).ids, tokenizer)
        assert control_ids(token_ids, tokenizer) == expected
        assert token_ids[: document.prompt_length] == encode_prompt(template, talk.messages[:last])
        prompt = plain_text(template, messages[:last], add_generation_prompt=True)
        written = plain_text(template, messages[: last + 1], add_generation_prompt=False)[len(prompt) :]
        targets = target_texts(document, tokenizer)
        assert targets[-1] == written.removesuffix("\n")
        assert targets[-1].endswith(stop)
        num_targets += len(targets)
    assert num_targets == len(turns)


@pytest.mark.parametrize("name", FAITHFUL)
@given(pairs=st.lists(st.tuples(harmless_text(), answers(harmless_text())), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
def test_targets_are_those_of_a_naive_account(name: str, pairs: list[tuple[str, str]]):
    template = tiny_template(name)
    talk = conversation(*(text for question, answer in pairs for text in (question + "?", answer)))
    [documents], report = render_with_report([talk], template)
    assert not isinstance(documents, Refusal)
    if report.num_seams == 0:
        [document] = documents
        assert_naive_mask(template, talk, document, STOPS[name])
    blanks = [len(answer) - len(answer.strip()) for _, answer in pairs]
    assert report.num_trimmed == (sum(blanks) if name == "trimming" else 0)


@pytest.mark.parametrize("name", TEMPLATES)
@given(texts=st.lists(answers(wild_text()), min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
@settings(max_examples=60, deadline=None)
def test_no_text_moves_a_mask_or_becomes_a_control_token(name: str, texts: list[str]):
    assert_every_turn_is_proved(tiny_template(name), conversation(*texts), STOPS[name])


@given(texts=st.lists(answers(harmless_text()), min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0))
@settings(max_examples=60, deadline=None)
def test_seams_are_counted_exactly(texts: list[str]):
    template = tiny_template("chatml")
    backend = template.tokenizer.backend
    [documents], report = render_with_report([conversation(*texts)], template)
    assert not isinstance(documents, Refusal)
    as_one_string = [
        backend.encode(backend.decode(document.token_ids.tolist(), skip_special_tokens=False)).ids
        for document in documents
    ]
    differing = sum(d.token_ids.tolist() != ids for d, ids in zip(documents, as_one_string, strict=True))
    assert report.num_seams == differing


def test_the_generation_prompt_wins_where_a_token_would_cross_its_end():
    template = tiny_template("chatml")
    talk = conversation("Hi", "\n\nHello", "Hi", "Bye")
    [documents], report = render_with_report([talk], template)
    assert not isinstance(documents, Refusal)
    assert report == RenderReport(num_trimmed=0, num_seams=1)
    first, second = documents
    assert first.token_ids[: first.prompt_length].tolist() == encode_prompt(template, talk.messages[:1])
    assert second.token_ids[: second.prompt_length].tolist() == encode_prompt(template, talk.messages[:3])
    assert target_texts(first, template.tokenizer) == ["\n\nHello<|im_end|>"]
    assert target_texts(second, template.tokenizer) == ["Bye<|im_end|>"]


def test_the_check_of_targets_notices_a_mask_that_is_off_by_one():
    template = tiny_template("chatml")
    talk = conversation("How many?", "27 apples")
    [document] = rendered(template, talk)
    assert_naive_mask(template, talk, document, "<|im_end|>")
    shifted = np.roll(document.loss_weights, 1)
    with pytest.raises(AssertionError):
        assert_naive_mask(
            template, talk, Document(document.token_ids, shifted, 0, document.origin), "<|im_end|>"
        )


def test_the_check_of_injections_notices_an_encoder_that_lets_them_through(monkeypatch: pytest.MonkeyPatch):
    template = tiny_template("chatml")
    talk = conversation("a<|im_end|>b", "c")
    assert_every_turn_is_proved(template, talk, "<|im_end|>")
    careless = Twin.neutralise
    monkeypatch.setattr(
        Twin, "neutralise", lambda self, text, **given: careless(self, _all_by_template(text), **given)
    )
    with pytest.raises((AssertionError, KeyError)):
        assert_every_turn_is_proved(template, talk, "<|im_end|>")


def _all_by_template(text: Any) -> Any:
    return type(text)(text, [(len(text), None, 0)])


def test_ids_with_another_control_token_are_refused(monkeypatch: pytest.MonkeyPatch):
    template = tiny_template("chatml")
    think = template.tokenizer.control_tokens["<think>"]
    honest = Twin.encode_batch
    monkeypatch.setattr(
        Twin,
        "encode_batch",
        lambda self, texts: [np.append(ids, np.int32(think)) for ids in honest(self, texts)],
    )
    assert render_documents([conversation("a", "b")], template) == [
        Refusal(
            "its ids hold other control tokens than the template wrote",
            "drop the record; this tokenizer cannot tell it apart",
        )
    ]


def test_weights_and_prompt_of_one_small_document():
    template = tiny_template("chatml")
    [document] = rendered(template, conversation("a", "b"))
    tokens = [template.tokenizer.decode([token_id]) for token_id in document.token_ids.tolist()]
    context = ["<|im_start|>", *"user", "\n", "a", "<|im_end|>", "\n", "<|im_start|>", *"assistant", "\n"]
    assert "".join(tokens) == "".join([*context, "b", "<|im_end|>", "\n"])
    assert document.loss_weights.tolist() == [0] * (len(tokens) - 3) + [1, 1, 0]
    assert document.prompt_length == len(tokens) - 3
    assert (document.token_ids.dtype, document.loss_weights.dtype) == (np.int32, np.float32)
    assert document.origin == Origin("test.jsonl", 1)


def test_results_stand_in_the_order_of_the_records():
    template = tiny_template("chatml")
    talks = [conversation("a", "first"), conversation("a"), conversation("a", "third", "b", "last")]
    first, refused, third = render_documents(talks, template, options=MaskOptions(loss_on="last"))
    assert isinstance(refused, Refusal)
    assert not isinstance(first, Refusal)
    assert not isinstance(third, Refusal)
    assert target_texts(first[0], template.tokenizer) == ["first<|im_end|>"]
    assert target_texts(third[0], template.tokenizer) == ["last<|im_end|>"]
    assert render_documents([], template, options=MaskOptions(loss_on="last")) == []


def test_loss_on_last_trains_the_last_answer_alone():
    template = tiny_template("chatml")
    talk = conversation("a", "first", "b", "second", "unanswered")
    [document] = rendered(template, talk, "last")
    assert target_texts(document, template.tokenizer) == ["second<|im_end|>"]
    assert document.token_ids[: document.prompt_length].tolist() == encode_prompt(template, talk.messages[:3])
    [both] = rendered(template, talk)
    assert target_texts(both, template.tokenizer) == ["first<|im_end|>", "second<|im_end|>"]


def test_loss_on_all_trains_every_token_but_the_first_and_what_follows_the_end():
    template = tiny_template("chatml")
    talk = conversation("a", "b", "unanswered")
    [document] = rendered(template, talk, "all")
    whole = plain_text(template, plain_messages(talk), add_generation_prompt=False)
    assert template.tokenizer.decode(document.token_ids.tolist()) == whole
    assert document.loss_weights.tolist() == [0] + [1] * (len(document.token_ids) - 2) + [0]
    assert document.token_ids[: document.prompt_length].tolist() == encode_prompt(template, talk.messages[:1])


def test_a_template_that_rewrites_history_gives_each_turn_its_own_document():
    template = tiny_template("rewriting")
    messages = (
        Message("user", "a"),
        Message("assistant", "b", reasoning_content="because"),
        Message("user", "c"),
        Message("assistant", "d", reasoning_content="since"),
    )
    first, second = rendered(template, Conversation(messages, Origin("t", 1)))
    tokenizer = template.tokenizer
    assert target_texts(first, tokenizer) == ["<think>\nbecause\n</think>\n\nb<|im_end|>"]
    assert target_texts(second, tokenizer) == ["<think>\nsince\n</think>\n\nd<|im_end|>"]
    assert "because" not in tokenizer.decode(second.token_ids.tolist())
    assert second.token_ids[: second.prompt_length].tolist() == encode_prompt(template, messages[:3])


@given(prompt=answers(wild_text()), response=answers(wild_text()))
@settings(max_examples=60, deadline=None)
def test_concat_encodes_prompt_and_response_apart(prompt: str, response: str):
    tokenizer = tiny_tokenizer()
    template = resolve_template("concat", tokenizer)
    [document] = rendered(template, conversation(prompt, response))
    ids = [*tokenizer.encode_text(prompt), *tokenizer.encode_text(response), tokenizer.eos_token_id]
    assert document.token_ids.tolist() == ids
    assert document.prompt_length == len(tokenizer.encode_text(prompt))
    expected = [0] * document.prompt_length + [1] * (len(ids) - document.prompt_length)
    assert document.loss_weights.tolist() == expected
    assert encode_prompt(template, [Message("user", prompt)]) == ids[: document.prompt_length]


def gsm8k(shared: Path) -> list[dict[str, str]]:
    lines = (shared / "data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def gsm8k_talks(shared: Path) -> list[Conversation]:
    return [conversation(record["question"], record["answer"]) for record in gsm8k(shared)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("chatml", {}), ("auto", {"enable_thinking": True}), ("auto", {"enable_thinking": False})],
)
def test_gsm8k_gets_the_ids_of_transformers_and_trains_the_end_of_every_answer(
    shared: Path, name: str, arguments: dict[str, bool]
):
    from transformers import AutoTokenizer

    folder = shared / "tokenizers/qwen3"
    reference = AutoTokenizer.from_pretrained(folder)
    template = resolve_template(name, load_tokenizer(str(folder)), template_args=arguments)
    talks = gsm8k_talks(shared)
    assert len(talks) == 7473
    ids = reference.apply_chat_template(
        [plain_messages(talk) for talk in talks],
        chat_template=template.jinja_text,
        tokenize=True,
        return_dict=False,
        **arguments,
    )
    stop = reference.convert_tokens_to_ids("<|im_end|>")
    results, report = render_with_report(talks, template)
    assert report == RenderReport(num_trimmed=report.num_trimmed, num_seams=0)
    for talk, documents, expected in zip(talks, results, ids, strict=True):
        assert not isinstance(documents, Refusal), documents
        [document] = documents
        assert document.token_ids.tolist() == expected
        assert document.token_ids[-2] == stop
        assert document.loss_weights[-2:].tolist() == [1, 0]
        [target] = target_texts(document, template.tokenizer)
        thought = "<think>\n\n</think>\n\n" if arguments.get("enable_thinking") else ""
        assert target == thought + talk.messages[1].content.lstrip("\n") + "<|im_end|>"


@pytest.mark.slow
def test_tokens_that_would_cross_a_bare_join_of_gsm8k_are_counted_and_both_parts_encoded_apart(shared: Path):
    tokenizer = load_tokenizer(str(shared / "tokenizers/qwen3"))
    talks = gsm8k_talks(shared)[:3000]
    results, report = render_with_report(talks, resolve_template("concat", tokenizer))
    assert report == RenderReport(num_seams=109)
    num_merged = 0
    for talk, documents in zip(talks, results, strict=True):
        assert not isinstance(documents, Refusal), documents
        prompt, response = (tokenizer.encode_text(message.content) for message in talk.messages)
        token_ids = documents[0].token_ids.tolist()
        assert token_ids == [*prompt, *response, tokenizer.eos_token_id]
        assert documents[0].loss_weights.tolist() == [0] * len(prompt) + [1] * (len(response) + 1)
        joined = talk.messages[0].content + talk.messages[1].content
        num_merged += tokenizer.backend.encode(joined, add_special_tokens=False).ids != token_ids[:-1]
    assert num_merged == 109


@pytest.mark.slow
def test_masks_cost_less_than_the_encoding_itself(shared: Path):
    """In processor time, taken in turns; the least of three, as other work on the machine only adds."""
    tokenizer = load_tokenizer(str(shared / "tokenizers/qwen3"))
    template = resolve_template("chatml", tokenizer)
    talks = gsm8k_talks(shared)[:3000]
    texts = [plain_text(template, plain_messages(talk), add_generation_prompt=False) for talk in talks]
    costs: dict[str, list[float]] = {"encoding": [], "masks": []}
    for _ in range(3):
        begin = time.process_time()
        tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False)
        middle = time.process_time()
        render_documents(talks, template)
        costs["encoding"].append(middle - begin)
        costs["masks"].append(time.process_time() - middle)
    assert min(costs["masks"]) < 2 * min(costs["encoding"])


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": [2, "é"], "b": {"c": None}}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
WITH_TOOLS = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", "Let me add.", reasoning_content="A sum.", tool_calls=(CALL, CALL)),
        Message("tool", "4"),
        Message("assistant", "4", reasoning_content="It says 4."),
    ),
    Origin("t", 1),
    tools=(TOOL, TOOL),
)


@pytest.mark.slow
def test_tools_and_reasoning_get_the_ids_of_transformers(shared: Path):
    from transformers import AutoTokenizer

    folder = shared / "tokenizers/qwen3"
    template = resolve_template("auto", load_tokenizer(str(folder)))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        plain_messages(WITH_TOOLS), tools=list(WITH_TOOLS.tools), return_dict=False
    )
    [document] = rendered(template, WITH_TOOLS)
    assert document.token_ids.tolist() == expected
    call = '<tool_call>\n{"name": "add", "arguments": {"a": [2, "é"], "b": {"c": null}}}\n</tool_call>'
    assert target_texts(document, template.tokenizer) == [
        f"<think>\nA sum.\n</think>\n\nLet me add.\n{call}\n{call}<|im_end|>",
        "<think>\nIt says 4.\n</think>\n\n4<|im_end|>",
    ]
    assert document.token_ids[: document.prompt_length].tolist() == encode_prompt(
        template, WITH_TOOLS.messages[:4], WITH_TOOLS.tools
    )
