"""What a template's own `{% generation %}` blocks say of the targets, held against what was proved.

A character of a proved turn is a target if it stands in a block as well. The end-of-turn token is a target
also where the block leaves it out, as many do: a policy that never learns it would never stop. What a block
holds beside proved turns counts for nothing, unless it is text of another message: then it is refused. A turn
without any block is context. Trained turns in which the two accounts differ are counted. Where every token is
trained (loss_on: all), blocks count for nothing.
"""

import functools
import re
from collections.abc import Sequence

from finetooth.data.masks.refusals import RefusedError
from finetooth.data.records import Message
from finetooth.data.templates.template import Template
from finetooth.data.tokenizer.twin import Rendered

_BLOCK = re.compile(r"\{%[-+]?\s*generation\b")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)


@functools.lru_cache(maxsize=16)
def has_blocks(template: Template) -> bool:
    """Whether a template marks by itself what an assistant writes."""
    return _BLOCK.search(_COMMENT.sub("", template.jinja_text)) is not None


def check_blocks(text: Rendered, messages: Sequence[Message]) -> None:
    """Raises RefusedError where a block holds text that no assistant wrote."""
    for begin, length, (index, _), *_ in text.messages:
        is_answer = index >= 0 and messages[index].role == "assistant"
        is_within = any(first < begin + length and begin < last for first, last in text.generated)
        if is_within and not is_answer:
            name = f"messages[{index}] ({messages[index].role})" if index >= 0 else "data.system or the tools"
            reason = f"{name}: a generation block of the template holds its text"
            raise RefusedError(reason, "correct the template's {% generation %} blocks")


def left_out(text: Rendered, begin: int, end: int) -> tuple[tuple[tuple[int, int], ...], bool] | None:
    """What the blocks leave out of a turn that ends with its end-of-turn token, text[begin:end].

    Gives the spans without a block, the end-of-turn token excepted, and whether blocks and turn differ at
    all; None where no block holds anything of the turn.

        turn    <think>⏎⏎</think>⏎⏎Four<|im_end|>
        block                      [   )              →  ((begin, begin of Four),), True
    """
    touching = [span for span in text.generated if span[0] < end and begin < span[1]]
    if not touching:
        return None
    gaps: list[tuple[int, int]] = []
    reached = begin
    for first, last in touching:
        if reached < first:
            gaps.append((reached, first))
        reached = max(reached, last)
    is_different = bool(gaps) or touching[0][0] < begin or reached != end
    if reached < end - 1:
        gaps.append((reached, end - 1))
    return tuple((first, min(last, end - 1)) for first, last in gaps if first < end - 1), is_different
