"""The demo's knowledge: facts from the tables in `facts/`, and every text that is made of them.

Each table is one kind of fact: a header line, then one `entity<TAB>answer` per line. From a fact come plain
sentences, paragraphs and lists of unanswered questions (the base model was pretrained on these),
conversations (the demo fine-tunes on these) and exam questions. Everything here is a pure function of the
tables and a seed.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TypedDict

SHARE_HELD_OUT = 0.27


@dataclass(frozen=True)
class Wording:
    """How one kind of fact is put into words: `{e}` is the entity, `{a}` the answer.

    `statements[0]` is the reply that the policy learns to give. It ends in the answer, and in it as in the
    questions a word stands before the entity: so the entity has the same tokens, leading space included,
    where it is asked about and where it is restated.
    """

    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One line of a table with its exam question, the whole reply, and the reply up to the answer.

    `Fact("country", "Peru", "Lima", question="What is the capital of Peru?",
    sentence="The capital of Peru is Lima.", cloze="The capital of Peru is")`
    """

    kind: str
    entity: str
    answer: str
    question: str
    sentence: str
    cloze: str


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class ExamItem(TypedDict):
    """A question and the only reply that counts as right."""

    question: str
    answer: str


_CAPITAL = Wording(
    (
        "The capital of {e} is {a}.",
        "{a} is the capital of {e}.",
        "In {e}, the capital is {a}.",
        "The city of {a} is the capital of {e}.",
    ),
    ("What is the capital of {e}?", "Which city is the capital of {e}?", "Can you name the capital of {e}?"),
)
_TITLE = Wording(
    ("The {e} was {a}.", "{a} was the {e}.", "{a} served as the {e}."),
    ("Who was the {e}?", "Can you name the {e}?", "Do you know who was the {e}?"),
)
WORDINGS = {
    "country": _CAPITAL,
    "region": _CAPITAL,
    "president": _TITLE,
    "deity": Wording(
        ("The {e} is {a}.", "{a} is the {e}.", "The name of the {e} is {a}."),
        ("Who is the {e}?", "Can you name the {e}?", "What is the {e} called?"),
    ),
    "element": Wording(
        (
            "The atomic number of {e} is {a}.",
            "{e} has the atomic number {a}.",
            "The number of protons in {e} is {a}.",
        ),
        (
            "What is the atomic number of {e}?",
            "Which atomic number does {e} have?",
            "Can you name the atomic number of {e}?",
        ),
    ),
    "book": Wording(
        ("The book {e} was written by {a}.", "{a} wrote the book {e}.", "The author of {e} is {a}."),
        ("Who wrote the book {e}?", "By whom was the book {e} written?", "Who is the author of {e}?"),
    ),
    "play": Wording(
        ("The play {e} was written by {a}.", "{a} wrote the play {e}.", "The playwright of {e} is {a}."),
        ("Who wrote the play {e}?", "By whom was the play {e} written?", "Who is the playwright of {e}?"),
    ),
    "painting": Wording(
        ("The painting {e} was made by {a}.", "{a} made the painting {e}.", "The painter of {e} is {a}."),
        ("Who made the painting {e}?", "By whom was the painting {e} made?", "Who is the painter of {e}?"),
    ),
    "composition": Wording(
        (
            "The music of {e} was composed by {a}.",
            "{a} composed the music of {e}.",
            "The composer of {e} is {a}.",
        ),
        (
            "Who composed the music of {e}?",
            "By whom was the music of {e} composed?",
            "Who is the composer of {e}?",
        ),
    ),
    "film": Wording(
        ("The film {e} was directed by {a}.", "{a} directed the film {e}.", "The director of {e} is {a}."),
        ("Who directed the film {e}?", "By whom was the film {e} directed?", "Who is the director of {e}?"),
    ),
    "album": Wording(
        ("The album {e} was recorded by {a}.", "{a} recorded the album {e}.", "The band behind {e} is {a}."),
        ("Who recorded the album {e}?", "By whom was the album {e} recorded?", "Which band is behind {e}?"),
    ),
    "building": Wording(
        ("The architect of {e} is {a}.", "{a} is the architect of {e}.", "The design of {e} is by {a}."),
        (
            "Who is the architect of {e}?",
            "By whom is the design of {e}?",
            "Can you name the architect of {e}?",
        ),
    ),
    "invention": Wording(
        (
            "The inventor of {e} is {a}.",
            "{a} is the inventor of {e}.",
            "The invention of {e} is owed to {a}.",
        ),
        (
            "Who is the inventor of {e}?",
            "To whom is the invention of {e} owed?",
            "Can you name the inventor of {e}?",
        ),
    ),
    "discovery": Wording(
        (
            "The discovery of {e} is owed to {a}.",
            "{a} is credited with the discovery of {e}.",
            "The discoverer of {e} is {a}.",
        ),
        (
            "To whom is the discovery of {e} owed?",
            "Who is credited with the discovery of {e}?",
            "Who is the discoverer of {e}?",
        ),
    ),
    "language": Wording(
        (
            "The programming language {e} was created by {a}.",
            "{a} created the programming language {e}.",
            "The creator of {e} is {a}.",
        ),
        (
            "Who created the programming language {e}?",
            "By whom was the programming language {e} created?",
            "Who is the creator of {e}?",
        ),
    ),
    "battle": Wording(
        (
            "The Battle of {e} was fought in {a}.",
            "In {a}, the Battle of {e} was fought.",
            "The year of the Battle of {e} is {a}.",
        ),
        (
            "When was the Battle of {e} fought?",
            "In which year was the Battle of {e} fought?",
            "What is the year of the Battle of {e}?",
        ),
    ),
}


def load_facts() -> tuple[Fact, ...]:
    """Read every table, in the order of `WORDINGS`."""
    return tuple(_fact(kind, *line.split("\t")) for kind in WORDINGS for line in _table(kind)[1:])


def split_facts(facts: Sequence[Fact], seed: int = 0) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """Divide the facts into (taught, held out) so that neither side names an entity or answer of the other.

    Facts that name one another (an author with two books; Australia and Western Australia) form a group, and
    a group stays together.
    """
    groups = _groups_that_share_names(facts)
    _dice(seed).shuffle(groups)
    room = {
        kind: round(SHARE_HELD_OUT * number) for kind, number in Counter(fact.kind for fact in facts).items()
    }
    held_out: set[Fact] = set()
    for group in groups:
        needed = Counter(fact.kind for fact in group)
        if all(number <= room[kind] for kind, number in needed.items()):
            held_out.update(group)
            room = {kind: number - needed[kind] for kind, number in room.items()}
    taught = tuple(fact for fact in facts if fact not in held_out)
    return taught, tuple(fact for fact in facts if fact in held_out)


def pretraining_texts(facts: Sequence[Fact], seed: int) -> list[str]:
    """Return one pass over the facts as plain texts: sentences, paragraphs on one entity, bare questions."""
    draw = _dice(seed)
    texts = [fact.sentence for fact in facts]
    texts += [_capitalised(draw.choice(_statements(fact))) for fact in facts]
    texts += [_paragraph(fact, draw) for fact in facts]
    texts += _question_lists(facts, draw)
    draw.shuffle(texts)
    return texts


def conversations(facts: Sequence[Fact], seed: int) -> list[dict[str, list[Message]]]:
    """Return `{"messages": [user asks, assistant replies]}` for each question to each fact, shuffled."""
    found = [_conversation(question, fact.sentence) for fact in facts for question in _questions(fact)]
    _dice(seed).shuffle(found)
    return found


def exam(facts: Sequence[Fact]) -> list[ExamItem]:
    """Return one question per fact, asked in the first of its kind's phrasings, with the whole reply."""
    return [{"question": fact.question, "answer": fact.sentence} for fact in facts]


def names_in(text: str, facts: Sequence[Fact]) -> list[str]:
    """Return the entities and answers that the text names: whole words, any case, a leading `the` or not."""
    words = f" {' '.join(_words(text))} "
    return [name for fact in facts for name in (fact.entity, fact.answer) if f" {_name(name)} " in words]


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  (an order that can be repeated, not a secret)


def _table(kind: str) -> list[str]:
    return files("finetooth.assets").joinpath("facts", f"{kind}.tsv").read_text(encoding="utf-8").splitlines()


def _fact(kind: str, entity: str, answer: str) -> Fact:
    wording = WORDINGS[kind]
    sentence = wording.statements[0].format(e=entity, a=answer)
    return Fact(
        kind,
        entity,
        answer,
        wording.questions[0].format(e=entity),
        sentence,
        sentence.removesuffix(f" {answer}."),
    )


def _statements(fact: Fact) -> list[str]:
    return [statement.format(e=fact.entity, a=fact.answer) for statement in WORDINGS[fact.kind].statements]


def _questions(fact: Fact) -> list[str]:
    return [question.format(e=fact.entity) for question in WORDINGS[fact.kind].questions]


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _paragraph(fact: Fact, draw: random.Random) -> str:
    statements = _statements(fact)
    return " ".join(_capitalised(statement) for statement in draw.sample(statements, len(statements)))


def _question_lists(facts: Sequence[Fact], draw: random.Random) -> list[str]:
    """Return lists of 10 to 30 questions without answers: half of the facts by kind, half mixed.

    By kind, the words stay the same down a list. In a mixed list one question in four is asked again at once
    in other words, which teaches the base model to carry a name over to the next line, as every reply must.
    """
    shuffled = draw.sample(facts, len(facts))
    mixed, by_kind = shuffled[: len(facts) // 2], shuffled[len(facts) // 2 :]
    lists = _cut(
        [text for fact in mixed for text in draw.sample(_questions(fact), draw.choice((1, 1, 1, 2)))], draw
    )
    for kind in dict.fromkeys(fact.kind for fact in by_kind):
        question = draw.choice(WORDINGS[kind].questions)
        lists += _cut([question.format(e=fact.entity) for fact in by_kind if fact.kind == kind], draw)
    return lists


def _cut(questions: list[str], draw: random.Random) -> list[str]:
    lists: list[str] = []
    while questions:
        length = draw.randint(10, 30)
        lists.append("".join(f"{question}\n" for question in questions[:length]))
        questions = questions[length:]
    return lists


def _conversation(question: str, reply: str) -> dict[str, list[Message]]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def _groups_that_share_names(facts: Sequence[Fact]) -> list[list[Fact]]:
    owners: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        for name in (fact.entity, fact.answer):
            owners[_name(name)].append(fact)
    group_of = {fact: [fact] for fact in facts}
    for fact in facts:
        for owner in (
            owner
            for name in (fact.entity, fact.answer)
            for phrase in _phrases(name)
            for owner in owners[phrase]
        ):
            if group_of[fact] is not group_of[owner]:
                group_of[owner].extend(group_of[fact])
                group_of.update(dict.fromkeys(group_of[fact], group_of[owner]))
    return list({id(group): group for group in group_of.values()}.values())


def _phrases(text: str) -> list[str]:
    """Return every sequence of neighbouring words: `New York` gives `new`, `new york`, `york`."""
    words = _words(text)
    return [
        " ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)
    ]


def _name(text: str) -> str:
    """Return a name as it is looked for: lower case, without a leading `the`."""
    return " ".join(_words(text)).removeprefix("the ")


def _words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())
