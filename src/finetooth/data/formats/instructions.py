"""The formats of one prompt and one answer, each in a field.

alpaca           {"instruction": "Add them.", "input": "2 and 2", "output": "4", "history": [["Hi", "Yes?"]]}
dolly            {"instruction": "Add them.", "context": "2 and 2", "response": "4"}
prompt-response  {"prompt": "2+2?", "response": "4"} or completion; both may also be lists of messages
question-answer  {"question": "2+2?", "answer": "4"}
gsm8k            {"question": "2+2?", "answer": "2+2 = <<2+2=4>>4\\n#### 4"}

Each may hold `system` and `tools`.
"""

import re
from typing import cast

from finetooth.data.formats.conversations import answer, conversation_of, exchange, question
from finetooth.data.formats.entry import Entry, UnfitError
from finetooth.data.formats.messages import list_of_messages
from finetooth.data.records import Conversation, Message, Origin

ALPACA_NAMES = ("instruction", "input", "output", "history", "system", "tools")
DOLLY_NAMES = ("instruction", "context", "response", "system", "tools")
PROMPT_RESPONSE_NAMES = ("prompt", "response", "completion", "system", "tools")
QUESTION_ANSWER_NAMES = ("question", "answer", "system", "tools")

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def read_alpaca(root: Entry, origin: Origin, input_join: str) -> Conversation:
    """The prompt is instruction and input, with `input_join` between; what is blank is left out."""
    prompts, answers = _history(root)
    prompts.append(_joined(root, "instruction", "input", input_join))
    answers.append(root.text("output"))
    return conversation_of(root, origin, exchange(prompts, answers))


def read_dolly(root: Entry, origin: Origin, input_join: str) -> Conversation:
    """The prompt is instruction and context, with `input_join` between; what is blank is left out."""
    prompt = _joined(root, "instruction", "context", input_join)
    return conversation_of(root, origin, exchange([prompt], [root.text("response")]))


def read_prompt_response(root: Entry, origin: Origin) -> Conversation:
    """Prompt and response, each a text or a list of messages.

    Assistant messages within the prompt are context, except where they say what their loss weight is.
    """
    messages = [*_prompt(root), *_response(root, root.one_of("response", "completion"))]
    return conversation_of(root, origin, messages)


def read_question_answer(root: Entry, origin: Origin) -> Conversation:
    """A question and its answer, as they stand."""
    return conversation_of(root, origin, exchange([root.text("question")], [root.text("answer")]))


def read_gsm8k(root: Entry, origin: Origin) -> Conversation:
    """The calculator's notes <<…>> are left out; the result behind #### goes into an answer tag."""
    prompt = root.text("question")
    solution, mark, result = root.text("answer").rpartition("####")
    if not mark:
        raise UnfitError("the answer has no line '#### result'", "add it, or name another data.format")
    result = result.strip()
    if not result or "\n" in result:
        fact = "no result after '####'" if not result else "more than one line after '####'"
        raise UnfitError(fact, "end the answer with one line '#### result'")
    solution = _ANNOTATION.sub("", solution).rstrip()
    last_line = f"<answer>{result}</answer>"
    response = f"{solution}\n{last_line}" if solution else last_line
    return conversation_of(root, origin, exchange([prompt], [response]))


def _history(root: Entry) -> tuple[list[str], list[str]]:
    prompts: list[str] = []
    answers: list[str] = []
    for index, pair in enumerate(root.optional_list("history")):
        texts = cast(list[object], pair) if isinstance(pair, list) else []
        if len(texts) != 2 or not isinstance(texts[0], str) or not isinstance(texts[1], str):
            fact = f"{root.inner('history')}[{index}] is no pair of texts"
            raise UnfitError(fact, 'write earlier turns as ["question", "answer"]')
        prompts.append(texts[0])
        answers.append(texts[1])
    return prompts, answers


def _joined(root: Entry, instruction: str, addition: str, input_join: str) -> str:
    parts = [root.text(instruction), root.optional_text(addition) or ""]
    return input_join.join(part for part in parts if part.strip())


def _prompt(root: Entry) -> list[Message]:
    if isinstance(root.peek("prompt"), list):
        return list_of_messages(root, "prompt", loss_weight=0.0)
    return [question(root.text("prompt"))]


def _response(root: Entry, name: str) -> list[Message]:
    if isinstance(root.peek(name), list):
        return list_of_messages(root, name)
    return [answer(root.text(name))]
