"""The format `text`: text without roles, all of which is trained.

{"text": "Once upon a time …"}
"""

from finetooth.data.formats.entry import Entry, UnfitError
from finetooth.data.records import Origin, PlainText

NAMES = ("text",)


def read_text(root: Entry, origin: Origin) -> PlainText:
    """Reads a record of this format."""
    text = root.text("text")
    if not text.strip():
        raise UnfitError("empty text", "write a text or remove the record")
    return PlainText(text, origin)
