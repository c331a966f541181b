"""`final/`: the policy as plain transformers loads and runs it; as model.pt where transformers cannot."""

import json
import shutil
from pathlib import Path
from typing import Any

from finetooth.base.distributed import ALONE, Ranks
from finetooth.base.files import FileEntry, require_space
from finetooth.data.templates.template import Template
from finetooth.data.templates.text import TELLS_TIME
from finetooth.data.tokenizer.files import TOKEN_FLAGS
from finetooth.model.policy import PolicyModel
from finetooth.training.checkpoint import is_state
from finetooth.training.dealt_files import common_folder, save_policy
from finetooth.training.legacy_files import has_twin, save_for_no_twin

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
)


def save_final(
    path: Path,
    *,
    policy: PolicyModel | Path,
    template: Template,
    card: str = "",
    ranks: Ranks = ALONE,
    step: int | None = None,
) -> None:
    """Writes parameters, tokenizer, chat template and the tokens that end an answer; all ranks call it.

    policy: the one in memory, or the folder of a checkpoint that is known to be intact
    card:   the text of README.md, where there is to be one
    step:   after which it is as it is; default: after the last one that metrics.jsonl beside `path` tells of
    """
    written: dict[str, FileEntry] = {}
    with common_folder(path, ranks, written=written, replace=True) as folder:
        if isinstance(policy, Path):
            if ranks.is_first:
                _copy_policy(policy, folder)
        elif has_twin(policy.model):
            parameters = save_policy(policy, folder, ranks)
            parameters.pop("generation_config.json", None)  # is edited here
            written |= parameters
        else:
            save_for_no_twin(policy, folder, path.parent, ranks, step=step)
        if ranks.is_first:
            _name_stop_tokens(folder / "generation_config.json", template)
            _save_tokenizer(folder, template)
            if card:
                (folder / "README.md").write_text(card, encoding="utf-8")


def _copy_policy(checkpoint: Path, folder: Path) -> None:
    """Copies what a checkpoint holds beside the state of the run."""
    files = [file for file in sorted(checkpoint.iterdir()) if not is_state(file.name)]
    require_space(folder, sum(file.stat().st_size for file in files))
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _name_stop_tokens(path: Path, template: Template) -> None:
    """Edits the file, as transformers saves a model's own settings back only if no object was changed.

    (Many published ones contradict themselves: a temperature without sampling.)
    """
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["eos_token_id"] = list(template.stop_token_ids)
    if settings.get("pad_token_id") is None:
        settings["pad_token_id"] = template.stop_token_ids[0]
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _save_tokenizer(folder: Path, template: Template) -> None:
    """Copies the tokenizer's files, with the tokens that the template needed written into them."""
    source = template.tokenizer.folder
    assert source is not None, "a run's tokenizer was read from a folder"
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.exists() else {}
    settings.pop("chat_template", None)  # the file beside it holds the template of the training
    if given := template.tokenizer.given_tokens:
        (folder / "tokenizer.json").write_bytes(template.tokenizer.definition)
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] |= {
                str(template.tokenizer.control_tokens[name]): {**TOKEN_FLAGS, "content": name}
                for name in given
            }
    settings_path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(exported_template(template), encoding="utf-8")


def exported_template(template: Template) -> str:
    """Jinja text that renders by itself what training rendered.

    `template_args`, `system` and the time that the training told are written into it.
    """
    prefix = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in template.arguments.items())
    if template.date_formats:
        told = {format: template.now.strftime(format) for format in template.date_formats}
        prefix += f"{{% macro {TELLS_TIME}(format) %}}{{{{ {_literal(told)}[format] }}}}{{% endmacro %}}"
    if template.system is not None:
        message = _literal([{"role": "system", "content": template.system}])
        has_none = "messages | selectattr('role', 'equalto', 'system') | list | length == 0"
        prefix += f"{{% if {has_none} %}}{{% set messages = {message} + messages %}}{{% endif %}}"
    # Blocks are trimmed: the line's end vanishes, and what begins the template still begins a line.
    return f"{prefix}\n{template.jinja_text}" if prefix else template.jinja_text


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, str | bool):
        return json.dumps(
            value, ensure_ascii=False
        )  # Jinja reads \\ud83d\\ude00 as two halves of a character
    return "none" if value is None else repr(value)
