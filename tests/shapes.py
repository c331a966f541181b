"""Conversations of every shape that data has: what templates and masks must cope with."""

from typing import Any

from finetooth.data.records import Conversation, Message, Origin

ORIGIN = Origin("shapes.jsonl", 1)


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, **fields: Any) -> Message:
    return Message("assistant", text, **fields)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NAMES = " ".join(
    ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<EOA>", "<s>", "</s>")
)
LONG = "The quick brown fox jumps over 13 lazy dogs;\n\tit does so twice. " * 150

SHAPES: dict[str, tuple[Message, ...]] = {
    "one turn": (user("What is 2+2?"), answer("It is 4.")),
    "system": (system("Be brief."), user("What is 2+2?"), answer("4")),
    "empty system": (system(""), user("What is 2+2?"), answer("4")),
    "several turns": (
        user("Hi"),
        answer("Hello!"),
        user("2+2?"),
        answer("4."),
        user("Sure?"),
        answer("Yes."),
    ),
    "ends with user": (user("Hi"), answer("Hello!"), user("And now?")),
    "two answers in a row": (user("Hi"), answer("Hello!"), answer("How are you?")),
    "two questions in a row": (user("Hi"), user("2+2?"), answer("4")),
    "unicode": (
        user("Grüße, 日本語? 👩‍👩‍👧 e\u0301"),
        answer("naïve\u00a0😀 שלום \u202eabc\u202c 한국어 e\u0301\u0323"),
    ),
    "spaces at the edges": (user("  2+2?  "), answer("  4  "), user("\t?\t"), answer(" so ")),
    "newlines first": (user("\n\n2+2?"), answer("\n\n4\n\n"), user("\nSure?\n"), answer("\nYes")),
    "newline in the first token": (user("Say"), answer(".\n\n\n  x"), user("More"), answer(":\n\n")),
    "very long": (user(LONG), answer(LONG + "4")),
    "code": (user("Indent"), answer("def f(x):\n        if x  <  2:\n\t\treturn [x]\n\n\n        # done\n")),
    "control names": (
        user(f"{NAMES} a<|im_end|>b"),
        answer(f"{NAMES}<|im_end|>"),
        user("<|im_"),
        answer("end|>"),
    ),
    "control names in system": (system(NAMES), user("Hi"), answer("Hello!")),
    "reasoning": (user("2+2?"), answer("4", reasoning_content="Two and two.")),
    "reasoning twice": (
        user("2+2?"),
        answer("4", reasoning_content="Two and two."),
        user("3+3?"),
        answer("6", reasoning_content="Three\n\nand three."),
    ),
    "reasoning split off": (
        user("2+2?"),
        answer("4", reasoning_content="Two.", text_with_reasoning="<think>\nTwo.\n</think>\n\n4"),
    ),
    "inline reasoning": (user("2+2?"), answer("<think>\nTwo.\n</think>\n\n4")),
    "tools": (
        system("Use tools."),
        user("Weather in Rome?"),
        answer("I look.", tool_calls=(call("weather", city="Rome"),)),
        Message("tool", '{"degrees": 21}'),
        answer("21 degrees."),
    ),
    "several calls": (
        user("Rome and <|im_end|> Oslo?"),
        answer(
            "", tool_calls=(call("weather", city="Rome"), call("weather", days=2, city="</tool_call> Oslö"))
        ),
        Message("tool", "21"),
        Message("tool", "3 <|im_end|>"),
        answer("", reasoning_content="Once more.", tool_calls=(call("weather", city="Rome"),)),
        Message("tool", "21"),
        answer("21 and 3."),
    ),
    "tools unused": (user("Hi"), answer("Hello!")),
    "context only": (user("Hi"), answer("Hello!", loss_weight=0), user("2+2?"), answer("4")),
}
NAMED = {  # these hold names of control tokens, which the plain tokenizer takes for the tokens
    *("control names", "control names in system", "several calls"),
    *("reasoning split off", "inline reasoning"),
}
WITH_TOOLS = ("tools", "several calls", "tools unused")


def conversation_of(shape: str) -> Conversation:
    tools = (WEATHER,) if shape in WITH_TOOLS else ()
    return Conversation(SHAPES[shape], ORIGIN, tools)
