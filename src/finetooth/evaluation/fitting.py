"""Whether targets can be judged on prepared records: told from their files, before parameters are loaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth.base.errors import ConfigError, all_at_once, problem
from finetooth.base.hub import local_folder
from finetooth.config.schema import ModelConfig, SFTConfig
from finetooth.data.preparation import PreparedData
from finetooth.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from finetooth.evaluation.speaker import knows_tokens, tokenizer_name
from finetooth.evaluation.targets import PLACE, Target
from finetooth.model.folders import ADAPTER_CONFIG, adapter_folder
from finetooth.model.shape import ModelShape, shape_of

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_OF_ANOTHER = "leave it out, or measure it with a --config whose model.path it is"


def shapes_of(targets: Sequence[Target]) -> list[ModelShape]:
    """How large each target's model is, or the base of its adapter.

    Raises ConfigError with every one that is absent or that its files do not describe.
    """
    return all_at_once(_shape, targets)


def require_fit(targets: Sequence[Target], shapes: Sequence[ModelShape], prepared: PreparedData) -> None:
    """Raises ConfigError with every target that has too few positions or embeddings for the documents."""
    problems: list[str] = []
    for target, shape in zip(targets, shapes, strict=True):
        place, longest = f"{PLACE}: {target.name}", prepared.longest_document
        if shape.positions is not None and longest > shape.positions:
            fact = f"{shape.positions} positions, and the longest document has {longest} tokens"
            problems.append(problem(place, fact, "leave it out, or lower data.max_length"))
        wanted = _largest_id(target, prepared)
        # With an adapter, the base's embedding may grow.
        if adapter_folder(target.path) is None and wanted >= shape.vocabulary:
            fact = f"{shape.vocabulary} embeddings, and the records' ids go up to {wanted}"
            problems.append(problem(place, fact, _OF_ANOTHER))
    if problems:
        raise ConfigError(problems)


def require_same_ids(targets: Sequence[Target], prepared: PreparedData, config: SFTConfig) -> None:
    """Raises ConfigError with every target whose own tokenizer gives other ids than the records'."""
    fact = "its tokenizer gives other ids than that with which the records were encoded"
    problems = [
        problem(f"{PLACE}: {target.name}", fact, _OF_ANOTHER)
        for target in targets
        if not _encodes_alike(target, prepared.tokenizer, config)
    ]
    if problems:
        raise ConfigError(problems)


def _shape(target: Target) -> ModelShape:
    place, adapter = f"{PLACE}: {target.name}", adapter_folder(target.path)
    path = target.path if adapter is None else _base_of(adapter, place)
    return shape_of(ModelConfig(path=path), place=place)


def _base_of(adapter: Path, place: str) -> str:
    """The folder or hub name of an adapter's base."""
    path = adapter / ADAPTER_CONFIG
    try:
        written = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        fact = f"{path}: {getattr(error, 'strerror', None) or 'not JSON'}"
        raise ConfigError(problem(place, fact, "use an intact copy")) from error
    base = written.get("base_model_name_or_path") if isinstance(written, dict) else None
    if not isinstance(base, str) or not base:
        raise ConfigError(problem(place, f"{path} names no base", "use an intact copy"))
    return base


def _largest_id(target: Target, prepared: PreparedData) -> int:
    """The largest id for which the target itself must have an embedding."""
    tokenizer, added = prepared.tokenizer, prepared.template.added_tokens
    if knows_tokens(target, prepared.template):
        return tokenizer.largest_id
    return min(tokenizer.control_tokens[name] for name in added) - 1


def _encodes_alike(target: Target, tokenizer: Tokenizer, config: SFTConfig) -> bool:
    """Whether the target's own tokenizer, where it has one, has the same ids, but for control tokens.

    The settings may say that a model is used with another tokenizer than its own (`model.tokenizer`).
    """
    name = tokenizer_name(target)
    if name is None or (config.model.tokenizer is not None and _is_same(name, config.model.path)):
        return True
    files = ("config.json", *_TOKENIZER_FILES)
    folder = local_folder(name, place=PLACE, required=files[:1], patterns=files)
    if not (folder / _TOKENIZER_FILES[0]).is_file():
        return True
    own = load_tokenizer(str(folder), place=PLACE)
    return have_same_ids(own, tokenizer)


def _is_same(name: str, other: str | None) -> bool:
    """Whether two names are those of one folder, or one hub name."""
    return other is not None and Path(name).expanduser().resolve() == Path(other).expanduser().resolve()


def have_same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether no token has two ids, and each that only one of them has is a control token."""
    if one.fingerprint == other.fingerprint:
        return True
    first: Mapping[str, int] = one.backend.get_vocab()
    second: Mapping[str, int] = other.backend.get_vocab()
    control = one.control_tokens.keys() | other.control_tokens.keys()
    return all(
        first[text] == second[text] if text in first and text in second else text in control
        for text in first.keys() | second.keys()
    )
