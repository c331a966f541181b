"""The formats that hold the turns of a conversation as plain lists of texts.

ultrachat  {"data": ["2+2?", "4", "Why?", "Count."]}; questions and answers in turn
turns      {"User": ["2+2?"], "Assistant": ["4"], "Template": ["CUSTOM"]}; Template is the system text, and
           CUSTOM means that the record has none of its own (data.system, if it is set)
"""

from finetooth.data.formats.conversations import conversation_of, exchange
from finetooth.data.formats.entry import Entry, UnfitError
from finetooth.data.records import Conversation, Message, Origin

ULTRACHAT_NAMES = ("data", "conversations", "system", "tools")
TURNS_NAMES = ("User", "Assistant", "Template", "system", "tools")

_NO_SYSTEM_TEXT = "CUSTOM"


def read_ultrachat(root: Entry, origin: Origin) -> Conversation:
    """Reads a list of texts that begins with a question."""
    texts = root.texts(root.one_of("data", "conversations"))
    return conversation_of(root, origin, exchange(texts[::2], texts[1::2]))


def read_turns(root: Entry, origin: Origin) -> Conversation:
    """Reads two lists of equal length."""
    prompts, answers = root.texts("User"), root.texts("Assistant")
    if len(prompts) != len(answers):
        fact = f"{len(prompts)} texts in {root.label('User')} but {len(answers)} in {root.label('Assistant')}"
        raise UnfitError(fact, "give every question its answer")
    messages = exchange(prompts, answers)
    if system := _template(root):
        messages.insert(0, Message("system", system))
    return conversation_of(root, origin, messages)


def _template(root: Entry) -> str | None:
    value = root.take("Template")
    if not isinstance(value, list):
        text = root.optional_text("Template")
    else:
        texts = root.texts("Template")
        if len(texts) > 1:
            fact = f"{len(texts)} texts in {root.label('Template')}"
            raise UnfitError(fact, "write one system text, or CUSTOM for none")
        text = texts[0] if texts else None
    return None if text == _NO_SYSTEM_TEXT else text
