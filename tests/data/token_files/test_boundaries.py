"""Documents are recovered from a stream exactly, or the stream is refused; nothing is glued or lost."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.chat import CONTROL_TOKENS, tiny_tokenizer
from tests.token_files import Encoded, chatml, joined, words

from finetooth.base.errors import DataError
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.token_files import boundaries
from finetooth.data.token_files.boundaries import Stretch, UndividableError, divide, openings_of

HEADERS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)
BARE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"

PLAIN = {
    "one": ("user", "What is it?"),
    "answer": ("assistant", "It is 3."),
    "rules": ("system", "Be brief."),
}
ASKED = [("user", "What is it?"), ("assistant", "It is\n 3.")]
TWICE = [*ASKED, ("user", "Why?\n"), ("assistant", "\nBecause.")]
RULED = [("system", "Be brief."), *ASKED]


def template_of(text: str) -> Template:
    return resolve_template("auto", tiny_tokenizer(text))


def chatml_template() -> Template:
    return resolve_template("chatml", tiny_tokenizer())


def divided(
    template: Template,
    documents: list[Encoded],
    *,
    size: int = 10**6,
    single_turn: bool = False,
    cut: slice = slice(None),
) -> list[tuple[list[int], bool, bool]]:
    """Ids, opens and is_last of each piece, the stream handed over in stretches of a size."""
    ids, mask = (array[cut] for array in joined(documents))
    stretches = [
        Stretch(ids[start : start + size], mask[start : start + size], is_start=start == 0)
        for start in range(0, len(ids), size)
    ]
    pieces = list(divide(stretches, openings_of(template, "train.bin"), single_turn=single_turn))
    assert [token for piece in pieces for token in piece.token_ids.tolist()] == ids.tolist()
    assert [mark for piece in pieces for mark in piece.marks.tolist()] == mask.tolist()
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    return [(piece.token_ids.tolist(), piece.opens, piece.is_doubtful) for piece in pieces]


def ids_of(documents: list[Encoded]) -> list[list[int]]:
    return [ids for ids, _ in documents]


SIZES = pytest.mark.parametrize("size", [1, 2, 3, 7, 10**6])


@SIZES
def test_chatml_goes_on_behind_a_newline(size: int):
    template = chatml_template()
    documents = [chatml(template, *turns) for turns in (ASKED, TWICE, RULED, TWICE, RULED, ASKED)]
    pieces = divided(template, documents, size=size)
    assert [ids for ids, _, _ in pieces] == ids_of(documents)
    assert all(opens for _, opens, _ in pieces)


@SIZES
def test_chatml_that_ends_in_newlines_is_divided_at_system_texts(size: int):
    template = chatml_template()
    documents = [chatml(template, *RULED, *TWICE, end="\n") for _ in range(3)]
    assert [ids for ids, _, _ in divided(template, documents, size=size)] == ids_of(documents)


@SIZES
def test_single_turns_are_divided_at_questions(size: int):
    template = chatml_template()
    documents = [chatml(template, *turns, end="\n") for turns in (ASKED, RULED, ASKED, ASKED)]
    pieces = divided(template, documents, size=size, single_turn=True)
    assert [ids for ids, _, _ in pieces] == ids_of(documents)


@SIZES
def test_headers_of_plain_words(size: int):
    template = template_of(HEADERS)
    documents = [words(template, *turns) for turns in (RULED, [*RULED, *TWICE], RULED)]
    assert [ids for ids, _, _ in divided(template, documents, size=size)] == ids_of(documents)
    documents = [words(template, *turns) for turns in (ASKED, RULED, ASKED, ASKED)]
    pieces = divided(template, documents, size=size, single_turn=True)
    assert [ids for ids, _, _ in pieces] == ids_of(documents)


def test_a_header_within_a_text_opens_nothing():
    template = template_of(HEADERS)
    quoting = [("system", "Say <|system|>\nor <|user|>\n"), ("user", "<|user|>\nWhat?"), ASKED[1]]
    documents = [words(template, *quoting), words(template, *RULED)]
    for single_turn in (False, True):
        pieces = divided(template, documents, single_turn=single_turn)
        assert [ids for ids, _, _ in pieces] == ids_of(documents)


@SIZES
def test_a_bos_token_opens(size: int):
    template = template_of(WITH_BOS)
    tokenizer = template.tokenizer
    documents = [([tokenizer.bos_token_id or 0, *tokenizer.encode_text("What?")], [0] * 9)] * 3
    documents = [(ids, [0] * len(ids)) for ids, _ in documents]
    assert [ids for ids, _, _ in divided(template, documents, size=size)] == ids_of(documents)


def test_six_tokens():
    control = ("<SOT>", "<EOT>", "<SOU>", "<EOU>", "<SOA>", "<EOA>")
    names = dict(zip(CONTROL_TOKENS, control, strict=False))
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{% if m.role == 'system' %}<SOT>{{ m.content }}<EOT>"
        "{% elif m.role == 'user' %}{{ '\n\n' if not loop.first }}<SOU>{{ m.content }}<EOU>"
        "{% else %}{{ '\n' }}<SOA>{{ m.content }}<EOA>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n' }}<SOA>{% endif %}"
    )
    definition = tokenizer.definition.decode()
    for old, new in names.items():
        definition = definition.replace(f'"{old}"', f'"{new}"')
    renamed = renamed_tokenizer(definition, tokenizer.chat_template or "")
    template = resolve_template("auto", renamed)

    def encoded(*turns: tuple[str, str]) -> Encoded:
        ids = renamed.backend.encode(
            template.render(
                [{"role": role, "content": text} for role, text in turns], None, add_generation_prompt=False
            ),
            add_special_tokens=False,
        ).ids
        return ids, [0] * len(ids)

    documents = [encoded(*turns) for turns in (RULED, [*RULED, *TWICE], ASKED, TWICE, RULED)]
    assert [ids for ids, _, _ in divided(template, documents)] == ids_of(documents)


def renamed_tokenizer(definition: str, chat_template: str):
    import json

    from finetooth.data.tokenizer.files import TokenizerFiles
    from finetooth.data.tokenizer.tokenizer import Tokenizer

    special = {"eos_token": "<EOA>"}
    return Tokenizer(TokenizerFiles(json.loads(definition), special, chat_template))


def refusal(divide_it: Callable[[], object]) -> str:
    with pytest.raises(UndividableError) as error:
        divide_it()
    return f"{error.value.fact}; {error.value.remedy}"


CHOICE = "set data.single_turn: true if each has one question, else write .jsonl with input_ids and labels"
DOUBT = "a question behind an answer may open a document or go on with one"


def test_what_cannot_be_told_apart_is_refused():
    chat, plain = chatml_template(), template_of(HEADERS)
    ending = [chatml(chat, *turns, end="\n") for turns in (ASKED, ASKED)]
    assert refusal(lambda: divided(chat, ending)) == f"its documents end in a newline, so {DOUBT}; {CHOICE}"
    asking = [words(plain, *turns) for turns in (ASKED, ASKED)]
    assert refusal(lambda: divided(plain, asking)) == f"it begins with a question, and {DOUBT}; {CHOICE}"
    tail = [words(plain, *ASKED)]
    cut = slice(3, None)
    assert refusal(lambda: divided(plain, tail, cut=cut)) == f"nothing in it opens a document; {CHOICE}"
    tight = [chatml(chat, ASKED[0]), chatml(chat, ASKED[1])]
    assert refusal(lambda: divided(chat, tight)) == (
        "a turn within a conversation begins without a newline before it; "
        "write it as .jsonl with input_ids and labels"
    )
    assert refusal(lambda: divided(chat, [])) == "it holds no tokens; check that this is the right file"
    with pytest.raises(DataError) as error:
        openings_of(template_of(BARE), "train.bin")
    assert error.value.problems == [
        "train.bin: it stores no boundaries, and an end token closes turns, not documents; "
        "write it as .jsonl with input_ids and labels; the template own opens no document"
    ]


def test_a_template_that_writes_nothing_for_a_question_is_refused():
    silent = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    with pytest.raises(DataError, match="an end token closes turns, not documents"):
        openings_of(template_of(silent), "train.bin")


def test_a_conversation_that_goes_on_at_the_end_is_not_doubted():
    template = chatml_template()
    documents = [chatml(template, *TWICE), chatml(template, *ASKED)]
    assert [ids for ids, _, _ in divided(template, documents)] == ids_of(documents)


@SIZES
def test_a_window_loses_no_token_and_glues_none(size: int):
    template = chatml_template()
    documents = [chatml(template, *turns) for turns in (TWICE, ASKED, TWICE)]
    ids, _ = joined(documents)
    first, second = (len(document[0]) for document in documents[:2])
    for begin in range(1, first + second):
        pieces = divided(template, documents, size=size, cut=slice(begin, None))
        remaining = documents[1:] if begin < first else documents[2:]
        if begin == first:
            assert [ids for ids, _, _ in pieces] == ids_of(documents)[1:]
            continue
        assert [ids for ids, _, _ in pieces[1:]] == ids_of(remaining)
        # A window that begins with a question cannot be told from a document.
        assert pieces[0][1] == (ids[begin:][:2].tolist() == documents[0][0][:2])


def test_a_document_without_end_is_not_collected_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(boundaries, "MAX_DOCUMENT_TOKENS", 50)
    template = chatml_template()
    long = [chatml(template, ("user", "What? " * 60), ASKED[1])]
    assert refusal(lambda: divided(template, long, size=10)).startswith(
        "no document begins within 50 tokens;"
    )


turns = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), st.text(alphabet="ab<|>\n. ", max_size=12)),
    min_size=1,
    max_size=4,
).map(lambda rest: [("user", "a"), *rest])


@given(st.lists(turns, min_size=1, max_size=5), st.integers(1, 60))
def test_any_conversations_come_back(conversations: list[list[tuple[str, str]]], size: int):
    template = chatml_template()
    documents = [chatml(template, *one) for one in conversations]
    assert [ids for ids, _, _ in divided(template, documents, size=size)] == ids_of(documents)


@given(st.lists(st.integers(-5, 420), min_size=1, max_size=80), st.integers(1, 90), st.booleans())
def test_any_tokens_are_divided_without_loss_or_refused(ids: list[int], size: int, single_turn: bool):
    template = chatml_template()
    opening = chatml(template, *ASKED)
    try:
        divided(template, [opening, (ids, [0] * len(ids)), opening], size=size, single_turn=single_turn)
    except UndividableError:
        return


def test_real_tokenizers(shared: Path):
    from finetooth.data.tokenizer.tokenizer import load_tokenizer

    qwen = resolve_template("chatml", load_tokenizer(str(shared / "tokenizers/qwen3")))
    documents = [chatml(qwen, *turns) for turns in (ASKED, TWICE, RULED) * 20]
    assert [ids for ids, _, _ in divided(qwen, documents, size=100)] == ids_of(documents)
    mistral = resolve_template("concat", load_tokenizer(str(shared / "tokenizers/mistral_v3")))
    assert openings_of(mistral, "x").style == "bos"
    assert openings_of(qwen, "x").end_tokens.tolist() == [qwen.tokenizer.eos_token_id]
