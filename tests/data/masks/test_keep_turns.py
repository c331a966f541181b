"""A conversation that is too long keeps whole turns from its end, and is proved like any other."""

from hypothesis import given
from hypothesis import strategies as st
from tests.chat import conversation, tiny_template

from finetooth.data.masks.keep_turns import Shortened, shortened
from finetooth.data.masks.masking import RenderReport, render_documents
from finetooth.data.masks.refusals import Refusal
from finetooth.data.masks.turns import MaskOptions
from finetooth.data.records import Conversation, Message, Origin, Role

ORIGIN = Origin("t.jsonl", 1)
CHATML = tiny_template("chatml")


def attempt(talk: Conversation, max_length: int, template_name: str = "chatml") -> Shortened | None:
    return shortened(talk, tiny_template(template_name), max_length=max_length, options=MaskOptions())


def length_of(talk: Conversation) -> int:
    [documents] = render_documents([talk], CHATML)
    assert not isinstance(documents, Refusal)
    return max(len(document.token_ids) for document in documents)


def talk_of(*roles: Role) -> Conversation:
    return Conversation(tuple(Message(role, f"{role} {i}") for i, role in enumerate(roles)), ORIGIN)


def test_the_system_text_and_the_last_turns_are_kept():
    talk = talk_of("system", "user", "assistant", "user", "assistant", "user", "assistant")
    left = attempt(talk, length_of(talk) - 1)
    assert left is not None
    assert left.conversation.messages == (talk.messages[0], *talk.messages[3:])
    assert left.report == RenderReport(num_left_out=2)
    [expected] = render_documents([left.conversation], CHATML)
    assert not isinstance(expected, Refusal)
    assert [d.token_ids.tolist() for d in left.documents] == [d.token_ids.tolist() for d in expected]


def test_it_never_begins_with_an_answer_or_a_result_whose_question_is_gone():
    talk = talk_of("user", "assistant", "tool", "tool", "assistant", "user", "user", "assistant", "user")
    first = [message.content for message in talk.messages]
    begins: set[str] = set()
    for max_length in range(2, length_of(talk)):
        left = attempt(talk, max_length)
        if left is not None:
            begins.add(left.conversation.messages[0].content)
            assert left.conversation.messages[-1] == talk.messages[-1]
    assert begins == {first[5]}


def test_nothing_is_left_where_the_last_turn_alone_is_too_long():
    assert attempt(conversation("a", "b", "c", "d" * 400), 20) is None
    assert attempt(conversation("a" * 400, "b"), 20) is None
    assert attempt(conversation("a", "b", "c" * 400), 20) is None


def test_turns_are_kept_where_those_behind_them_are_context_only():
    turns = [(Message("user", "a" * 20), Message("assistant", "b", loss_weight=n < 2)) for n in range(6)]
    talk = Conversation(tuple(message for turn in turns for message in turn), ORIGIN)
    left = attempt(talk, length_of(talk) - 1)
    assert left is not None
    assert left.conversation.messages == talk.messages[2:]
    assert left.report == RenderReport(num_left_out=2, num_behind=8)


def test_a_template_that_refuses_what_is_left_leaves_nothing():
    assert attempt(conversation("a", "b", "c", " "), 20) is None


@given(
    lengths=st.lists(st.integers(1, 30), min_size=2, max_size=12).filter(lambda texts: len(texts) % 2 == 0),
    max_length=st.integers(10, 160),
    name=st.sampled_from(["chatml", "rewriting"]),
)
def test_as_many_turns_are_kept_as_fit(lengths: list[int], max_length: int, name: str):
    talk = conversation(*("a" * length for length in lengths))
    fitting: list[int] = []
    for start in range(2, len(lengths), 2):
        left = Conversation(talk.messages[start:], talk.origin)
        [documents] = render_documents([left], tiny_template(name))
        assert not isinstance(documents, Refusal)
        if max(len(document.token_ids) for document in documents) <= max_length:
            fitting.append(start)
    found = attempt(talk, max_length, name)
    assert (found is None) == (not fitting)
    if found is not None:
        assert found.conversation.messages == talk.messages[min(fitting) :]
        assert found.report.num_left_out == min(fitting)
        assert max(len(document.token_ids) for document in found.documents) <= max_length
