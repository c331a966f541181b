"""Text of tokens that arrive one by one, in pieces that never cut a character."""

from collections.abc import Callable, Sequence

# What decoders write for bytes that make no character, or none yet.
_NO_CHARACTER = "\ufffd"


class TextPieces:
    """Turns tokens into the pieces of text that each of them makes certain.

    decode: the text of token ids, as a tokenizer gives it

    All of them are decoded anew each time, as what a token says can depend on those before it. Together, the
    pieces are the text of all tokens, except where a decoder rewrites what it gave before.

    >>> pieces = TextPieces(lambda token_ids: bytes(token_ids).decode(errors="replace"))
    >>> [pieces.add(byte) for byte in "né".encode()], pieces.rest()
    (['n', '', 'é'], '')
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._token_ids: list[int] = []
        self.text = ""

    def add(self, token_id: int) -> str:
        """The text that is certain with this token and was not given before; often a word, or nothing."""
        self._token_ids.append(token_id)
        return self._give(self._decode(self._token_ids).rstrip(_NO_CHARACTER))

    def rest(self) -> str:
        """What was held back, where no token follows: bytes that make no character are U+FFFD."""
        return self._give(self._decode(self._token_ids))

    def _give(self, known: str) -> str:
        if not known.startswith(self.text):
            return ""
        piece = known[len(self.text) :]
        self.text = known
        return piece
