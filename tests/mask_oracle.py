"""What a mask must be, from the characters alone: an account that shares no code with finetooth.

Texts come from transformers' own `apply_chat_template`, places of answers from markers put in their stead,
ids and offsets from the plain tokenizers library. Whether a control token stands in the text is decided by
rendering the same conversation with all letters of its messages replaced: what is still there, the template
wrote.
"""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

MARKER = "MARKERQQ"
SEAM = "\ue0ff"  # parts what is encoded apart; a control token of the oracle's own

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Expected:
    """One document: its text, its ids and which of them are targets (their weight, 0 = context)."""

    text: str
    token_ids: list[int]
    loss_weights: list[float]
    prompt_length: int
    has_seam: bool


class Oracle:
    """Answers for one tokenizer, whatever the template."""

    def __init__(self, definition: str, special_tokens: Mapping[str, str]):
        """definition: the text of tokenizer.json."""
        self._definition = definition
        self._special_tokens = dict(special_tokens)
        added = {token["content"]: token["id"] for token in json.loads(definition)["added_tokens"]}
        self.control_ids = {name: number for name, number in added.items() if name.strip()}
        longest_first = sorted(self.control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)))

    @cached_property
    def plain(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers has it, which takes control tokens out of any text."""
        backend = tokenizers.Tokenizer.from_str(self._definition)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **self._special_tokens)

    @cached_property
    def _without_controls(self) -> tokenizers.Tokenizer:
        definition = json.loads(self._definition) | {"post_processor": None}
        model = definition["model"]
        if isinstance(model["vocab"], list):  # Unigram finds its control tokens in text, too
            hidden = {name: f"{SEAM}{number}" for number, name in enumerate(self.control_ids)}
            model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
        rest = [token for token in definition["added_tokens"] if not token["content"].strip()]
        backend = tokenizers.Tokenizer.from_str(json.dumps(definition | {"added_tokens": rest}))
        backend.add_special_tokens([tokenizers.AddedToken(SEAM, normalized=False, special=True)])
        return backend

    def text(self, jinja_text: str, messages: Messages, tools: Any = None, **variables: Any) -> str:
        """What transformers renders."""
        return self.plain.apply_chat_template(
            copy.deepcopy(messages), tools=tools, chat_template=jinja_text, tokenize=False, **variables
        )

    def documents(
        self,
        jinja_text: str,
        messages: Messages,
        tools: Any,
        *,
        stop: str,
        trained: Sequence[int],
        reasoning: Mapping[int, str],
        **variables: Any,
    ) -> list[Expected]:
        """The documents of a conversation whose turns `trained` are targets; see `_turn` for their places.

        reasoning: turns of which only the answer is trained, each with the reasoning its content begins with
        """
        shown = {"jinja_text": jinja_text, "tools": tools, **variables}
        turns = [self._turn(messages, index, stop, shown, reasoning.get(index)) for index in trained]
        groups: list[list[_Turn]] = []
        for turn in turns:
            if groups and turn.prompt.startswith(groups[-1][-1].text[: groups[-1][-1].end]):
                groups[-1].append(turn)
            else:
                groups.append([turn])
        return [expected for group in groups for expected in self._of_one_text(group)]

    def _of_one_text(self, turns: list["_Turn"]) -> list[Expected]:
        """A document, or several where the ids of a prompt are not those the text gives it."""
        found: list[Expected] = []
        begin = 0
        for number, turn in enumerate(turns):
            prompt_ids = [token_id for token_id, _, _ in self.encode(turn.prompt, turn.controls)]
            whole = [token_id for token_id, _, _ in self.encode(turns[-1].text, turns[-1].controls)]
            has_seam = whole[: len(prompt_ids)] != prompt_ids
            if has_seam or number == len(turns) - 1:
                seam = len(turn.prompt) if has_seam else 0
                tokens = self.encode(turn.text, turn.controls, seam)
                weights = [0.0] * len(tokens)
                for trained in turns[begin : number + 1]:
                    for place, (_, start, end) in enumerate(tokens):
                        is_within = len(trained.prompt) <= start and end <= trained.end
                        is_target = is_within and trained.first <= max(start, end - 1)
                        weights[place] = 1.0 if is_target else weights[place]
                ids = [token_id for token_id, _, _ in tokens]
                found.append(Expected(turn.text, ids, weights, len(prompt_ids), has_seam))
                begin = number + 1
        return found

    def encode(
        self, text: str, controls: Sequence[tuple[int, int]], seam: int = 0
    ) -> list[tuple[int, int, int]]:
        """(id, begin, end) of each token, where control tokens stand nowhere but at `controls`.

        seam: a place that no token crosses
        """
        tokens: list[tuple[int, int, int]] = []
        edges = [*controls, (seam, seam)] if seam else list(controls)
        reached = 0
        for begin, end in [*sorted(edge for edge in edges if edge[1] <= len(text)), (len(text), len(text))]:
            if begin > reached:
                tokens.extend(self._piece(text[reached:begin], reached))
            if end > begin:
                tokens.append((self.control_ids[text[begin:end]], begin, end))
            reached = max(reached, end)
        return tokens

    def _piece(self, text: str, offset: int) -> list[tuple[int, int, int]]:
        """A piece without control tokens, as it stands in the middle of a text or at its begin."""
        encoding = self._without_controls.encode((SEAM if offset else "") + text, add_special_tokens=False)
        shift = offset - (1 if offset else 0)
        pairs = list(zip(encoding.ids, encoding.offsets, strict=True))[1 if offset else 0 :]
        forbidden = {token_id for name, token_id in self.control_ids.items() if name != "<unk>"}
        assert forbidden.isdisjoint(encoding.ids[1 if offset else 0 :]), "text is never a control token"
        return [(token_id, begin + shift, end + shift) for token_id, (begin, end) in pairs]

    def _turn(
        self, messages: Messages, index: int, stop: str, shown: dict[str, Any], reasoning: str | None
    ) -> "_Turn":
        """An assistant turn: from the end of the generation prompt through its stop string.

        What follows the answer is what follows a marker in its place, and holds the stop string.
        """
        prompt = self._shown(messages[:index], shown, add_generation_prompt=True)
        text = self._shown(messages[: index + 1], shown)
        assert text.startswith(prompt)
        marked = self._shown([*messages[:index], _with_last_text(messages[index], MARKER)], shown)
        tail = marked.rsplit(MARKER, 1)[1].removeprefix('"')  # what closes the JSON of arguments is the same
        assert text.endswith(tail)
        before_targets = prompt
        if reasoning is not None:
            plain = {key: entry for key, entry in messages[index].items() if key != "tool_calls"}
            begun = self._shown([*messages[:index], plain | {"content": reasoning + MARKER}], shown)
            before_targets = begun[: begun.rindex(MARKER)]
            assert text.startswith(before_targets)
        end = len(text) - len(tail) + tail.index(stop) + len(stop)
        return _Turn(
            prompt, text, end, len(before_targets), self._controls(messages[: index + 1], text, shown)
        )

    def _controls(self, messages: Messages, text: str, shown: dict[str, Any]) -> list[tuple[int, int]]:
        harmless = self._shown(
            _without_letters(messages), shown | {"tools": _without_letters(shown["tools"])}
        )
        assert len(harmless) == len(text)
        return [match.span() for match in self._control.finditer(harmless)]

    def _shown(
        self, messages: Messages, shown: dict[str, Any], *, add_generation_prompt: bool = False
    ) -> str:
        return self.text(messages=messages, add_generation_prompt=add_generation_prompt, **shown)


@dataclass(frozen=True)
class _Turn:
    """A turn: its text, where it ends, and the first character that is trained."""

    prompt: str
    text: str
    end: int
    first: int
    controls: list[tuple[int, int]]


def wrong_targets(token_ids: Sequence[int], loss_weights: Sequence[float], expected: Expected) -> int:
    """How many positions differ from what is expected, in id or weight; a missing one counts."""
    found = list(zip(token_ids, loss_weights, strict=True))
    wanted = list(zip(expected.token_ids, expected.loss_weights, strict=True))
    differing = sum(a != b for a, b in zip(found, wanted, strict=False))
    return differing + abs(len(found) - len(wanted))


def _with_last_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    """The message with other text in its last place: the arguments of its last call, or its content."""
    changed = copy.deepcopy(message)
    if not changed.get("tool_calls"):
        return changed | {"content": text}
    changed["tool_calls"][-1]["function"]["arguments"] = {"marked": text}
    return changed


def _without_letters(value: Any, key: str = "content") -> Any:
    """The same with x for every letter in what people write; keys, roles and types stay."""
    if isinstance(value, str):
        return value if key in ("role", "type") else re.sub("[A-Za-z]", "x", value)
    if isinstance(value, dict):
        return {name: _without_letters(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_letters(entry, key) for entry in value]
    return value
