"""A twin tells what the template wrote from message text, and lets through only what is allowed."""

from hypothesis import given
from hypothesis import strategies as st
from tests.chat import CONTROL_TOKENS, tiny_tokenizer, wild_text

from finetooth.data.provenance import UNPLACED, Traced, joined
from finetooth.data.twin import MessageRun, Twin

SOURCE = (0, "content")


def traced(text: str) -> Traced:
    return Traced(text, ((len(text), SOURCE, 0),))


def twin_of(text: str = "") -> Twin:
    return tiny_tokenizer().twin_for([text])


def test_the_template_writes_tokens_and_a_message_the_allowed_ones_only():
    twin = twin_of()
    rendered = twin.neutralise(joined(["<s>", traced("a<think>b<s>")]), allowed=frozenset({"<think>"}))
    ids = tiny_tokenizer().control_tokens
    assert twin.ids_of(rendered.text[0] + rendered.text[2]) == [ids["<s>"], ids["<think>"]]
    assert (rendered.controls, rendered.allowed) == ((0,), (2,))
    assert rendered.messages == (
        MessageRun(1, 1, SOURCE, 0, 1),
        MessageRun(2, 1, SOURCE, 1, 8),
        MessageRun(3, 4, SOURCE, 8, 12),
    )
    assert rendered.text[3:] == "b<s>"


def test_an_allowed_token_that_lost_its_place_has_none():
    shouted = Traced("a<think>", ((8, SOURCE, UNPLACED),))
    rendered = twin_of().neutralise(shouted, allowed=frozenset({"<think>"}))
    assert [(run.start, run.end) for run in rendered.messages] == [(UNPLACED, UNPLACED)] * 2
    assert rendered.allowed == (1,)


@given(text=wild_text(), allowed=st.frozensets(st.sampled_from(CONTROL_TOKENS)))
def test_message_text_gives_exactly_the_allowed_tokens_and_loses_nothing(text: str, allowed: frozenset[str]):
    tokenizer = tiny_tokenizer()
    twin = twin_of(text)
    rendered = twin.neutralise(traced(text), allowed=allowed)
    token_ids = twin.encode_batch([rendered.text])[0]
    found = token_ids[twin.find_controls(token_ids)].tolist()
    assert found == twin.ids_of(rendered.text[place] for place in rendered.allowed)
    assert set(found) <= {tokenizer.control_tokens[name] for name in allowed}
    assert not any(name in allowed for name in twin.names_in(rendered.text))
    assert tokenizer.decode(token_ids.tolist()) == text
    assert "".join(text[run.start : run.end] for run in rendered.messages) == text


def test_names_of_control_tokens_that_stayed_text_are_found():
    twin = twin_of()
    rendered = twin.neutralise(joined(["<s>", traced("<s> <s <think><think>"), "<s>"]))
    assert twin.names_in(rendered.text) == ["<s>", "<think>", "<think>"]
