"""Reads the files that define a tokenizer; one without tokenizer.json is converted in a process of its own.

Read are tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

import msgspec

from finetooth.base.errors import ConfigError, problem
from finetooth.base.files import sha256_of
from finetooth.base.kinds import require_kind

SPECIAL_TOKEN_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))

TOKEN_FLAGS = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}
"""What a control token is where a file says nothing else."""

_PATTERNS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt", "*.model", "config.json"),
    "additional_chat_templates/*.jinja",
)
_REPAIR = "repair or replace the file"
_CONVERT = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
tokenizer.save_pretrained(sys.argv[2])
"""


class _Text(TypedDict):
    content: str


class _AddedToken(_Text):
    id: int


class _Model(TypedDict):
    vocab: dict[str, int] | list[tuple[str, float]]
    unk_token: NotRequired[str | None]
    unk_id: NotRequired[int | None]


class _Definition(TypedDict):
    """What is read of tokenizer.json."""

    model: _Model
    added_tokens: list[_AddedToken]


class _NamedTemplate(TypedDict):
    name: str
    template: str


class _Settings(TypedDict, total=False):
    """What is read of tokenizer_config.json and special_tokens_map.json."""

    bos_token: str | _Text
    eos_token: str | _Text
    unk_token: str | _Text
    sep_token: str | _Text
    pad_token: str | _Text
    cls_token: str | _Text
    mask_token: str | _Text
    chat_template: str | list[_NamedTemplate]
    added_tokens_decoder: dict[Annotated[str, msgspec.Meta(pattern="^[0-9]+$")], _Text]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    definition:     tokenizer.json, parsed, with those tokens among `added_tokens` that only other files name
    special_tokens: by name: {"eos_token": "</s>"}
    chat_template:  Jinja text, or None
    named_templates: further ones, by name
    folder:         where the files are; None where there are none
    keeper:         removes a temporary folder once nobody holds this
    """

    definition: dict[str, Any]
    special_tokens: Mapping[str, str]
    chat_template: str | None = None
    named_templates: Mapping[str, str] = field(default_factory=dict[str, str])
    folder: Path | None = None
    keeper: "tempfile.TemporaryDirectory[str] | None" = field(default=None, repr=False)


def read_tokenizer_files(name_or_folder: str, place: str) -> TokenizerFiles:
    """Reads the tokenizer of a folder or hub repository. Raises ConfigError where there is none."""
    folder = _local_folder(name_or_folder, place)
    keeper = None
    if not (folder / "tokenizer.json").is_file():
        keeper = _converted(folder, place)
        folder = Path(keeper.name)
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read = _read_json(folder / name, place)
            _require(_stated(read), _Settings, folder / name, place)
            settings |= read
    settings = _stated(settings)
    special_tokens = {name: _text_of(settings[name]) for name in SPECIAL_TOKEN_NAMES if name in settings}
    definition = _read_json(folder / "tokenizer.json", place)
    if not {"model", "added_tokens"} <= definition.keys():
        fact = f"{folder / 'tokenizer.json'} holds no tokenizer"
        raise ConfigError(problem(place, fact, _REPAIR))
    _require(definition, _Definition, folder / "tokenizer.json", place)
    _add_missing_tokens(definition, settings.get("added_tokens_decoder", {}), special_tokens, place)
    templates = _chat_templates(folder, settings)
    default = templates.pop("default", None)
    return TokenizerFiles(definition, special_tokens, default, templates, folder, keeper)


def hash_tokenizer_files(name_or_folder: str, place: str) -> str:
    """SHA-256 over the files that define a tokenizer, without parsing them. Raises ConfigError for none."""
    folder = _local_folder(name_or_folder, place)
    files = sorted({file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()})
    if (folder / "tokenizer.json").is_file():  # config.json is read for the conversion alone
        files = [file for file in files if file.name != "config.json"]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)}\n{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def vocabulary_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Token ids by name, from the `model` of a tokenizer.json; a Unigram model keeps its pieces as a list."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {piece: index for index, (piece, _) in enumerate(cast(list[tuple[str, float]], vocabulary))}
    return vocabulary


def _local_folder(name_or_folder: str, place: str) -> Path:
    if (path := Path(name_or_folder).expanduser()).is_dir():
        return path
    from finetooth.base.hub import local_folder  # its libraries take longer to import than all else here

    return local_folder(name_or_folder, place=place, required=("tokenizer*",), patterns=_PATTERNS)


def _converted(folder: Path, place: str) -> tempfile.TemporaryDirectory[str]:
    """Lets transformers read the tokenizer and write it, with a tokenizer.json, into a temporary folder."""
    fact = f"{folder} has no tokenizer.json"
    # From settings alone transformers would make a tokenizer without a vocabulary.
    if not any(path for pattern in ("vocab.*", "*.model") for path in folder.glob(pattern)):
        raise ConfigError(problem(place, fact, "name a folder that holds a tokenizer"))
    keeper = tempfile.TemporaryDirectory(prefix="finetooth-tokenizer-")
    command = [sys.executable, "-c", _CONVERT, str(folder), keeper.name]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    if done.returncode or not Path(keeper.name, "tokenizer.json").is_file():
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        remedy = "save it with transformers as a fast tokenizer first"
        raise ConfigError(problem(place, f"{fact}, and transformers cannot convert it: {said}", remedy))
    return keeper


def _add_missing_tokens(
    definition: dict[str, Any], decoder: Mapping[str, Any], special_tokens: Mapping[str, str], place: str
) -> None:
    """Adds what transformers adds: `added_tokens_decoder`, and special tokens that are plain tokens."""
    added: dict[str, dict[str, Any]] = {token["content"]: token for token in definition["added_tokens"]}
    vocabulary = vocabulary_of(definition["model"])
    for token_id, token in decoder.items():
        added.setdefault(token["content"], {**TOKEN_FLAGS, **token, "id": int(token_id)})
    problems: list[str] = []
    for name, text in special_tokens.items():
        if text in vocabulary:
            added.setdefault(text, {**TOKEN_FLAGS, "id": vocabulary[text], "content": text})
        elif text not in added:
            fact = f"its {name} {text!r} is not among its tokens"
            problems.append(
                problem(place, fact, "add it to tokenizer.json, or correct tokenizer_config.json")
            )
    if problems:
        raise ConfigError(problems)
    definition["added_tokens"] = sorted(added.values(), key=lambda token: token["id"])


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The tokenizer's own templates by name; files win over what stands in the settings."""
    stated = settings.get("chat_template")
    if isinstance(stated, list):
        entries = cast(list[dict[str, str]], stated)
        templates = {entry["name"]: entry["template"] for entry in entries}
    else:
        templates = {"default": stated} if stated is not None else {}
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def _text_of(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _stated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something; null, false and an empty text say that there is none."""
    return {name: value for name, value in settings.items() if value}


def _require(content: Mapping[str, Any], kind: Any, path: Path, place: str) -> None:
    try:
        require_kind(content, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(problem(place, f"{path}: {error}", _REPAIR)) from None


def _read_json(path: Path, place: str) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        fact = f"{path} cannot be read ({error})"
        raise ConfigError(problem(place, fact, _REPAIR)) from error
    if not isinstance(parsed, dict):
        raise ConfigError(problem(place, f"{path} holds no JSON object", _REPAIR))
    return cast(dict[str, Any], parsed)
