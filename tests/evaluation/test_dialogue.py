"""A conversation grows by questions and answers, gives what fits, and becomes a record to train."""

from finetooth.data.formats.reading import to_conversation
from finetooth.data.records import Conversation, Message, Origin, Record
from finetooth.evaluation.dialogue import Dialogue, what_fits

TALK = (
    Dialogue("Be brief.").asked("One?").answered("1", is_cut=False).asked("Two?").answered("2", is_cut=True)
)


def num_characters(messages: object) -> int:
    return sum(len(message.content) for message in messages)  # type: ignore[attr-defined]


def test_it_counts_answers_and_those_that_were_cut_off():
    assert (TALK.num_answers, TALK.num_cut) == (2, 1)
    assert TALK.forgotten() == Dialogue("Be brief.")
    assert TALK.forgotten().messages == ()


def test_all_is_given_where_it_fits():
    asked = TALK.asked("Three?")
    given = what_fits(asked, num_tokens=num_characters, most=100)
    assert given == (Message("system", "Be brief."), *asked.messages)


def test_the_oldest_exchanges_are_left_out_and_the_system_text_stays():
    asked = TALK.asked("Three?")
    length = num_characters((*asked.opening, *asked.messages))
    given = what_fits(asked, num_tokens=num_characters, most=length - 1)
    assert [message.content for message in given] == ["Be brief.", "Two?", "2", "Three?"]
    given = what_fits(asked, num_tokens=num_characters, most=length - 6)
    assert [message.content for message in given] == ["Be brief.", "Three?"]


def test_the_last_question_stays_however_long_it_is():
    given = what_fits(Dialogue().asked("Long?" * 9), num_tokens=num_characters, most=1)
    assert [message.content for message in given] == ["Long?" * 9]


def test_its_record_is_read_as_it_was():
    reasoned = TALK.asked("Four?").answered("<think>\n2+2\n</think>\n\n4", is_cut=False)
    assert reasoned.messages[-1].reasoning_content == "2+2"
    assert reasoned.messages[-1].content == "4"
    read = to_conversation(Record(Origin("a.jsonl", 1), reasoned.record()), format="messages")
    assert isinstance(read, Conversation)
    assert read.messages == (*reasoned.opening, *reasoned.messages)
