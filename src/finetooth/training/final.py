"""`final/`: the policy as plain transformers loads and runs it."""

import json
import shutil
from pathlib import Path

from finetooth.base.files import new_folder
from finetooth.config.schema import SFTConfig
from finetooth.data.templates import Template
from finetooth.model.policy import PolicyModel

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
)


def save_final(path: Path, *, policy: PolicyModel, template: Template, config: SFTConfig) -> None:
    """Writes parameters, tokenizer, chat template and the tokens that end an answer; replaces an older one."""
    generation = policy.model.generation_config
    assert generation is not None, "a causal language model has a generation config"
    generation.eos_token_id = list(template.stop_token_ids)
    if generation.pad_token_id is None:
        generation.pad_token_id = template.stop_token_ids[0]
    with new_folder(path, replace=True) as folder:
        policy.save_pretrained(folder)
        _save_tokenizer(folder, template)
        (folder / "README.md").write_text(_model_card(config, template), encoding="utf-8")


def _save_tokenizer(folder: Path, template: Template) -> None:
    source = template.tokenizer.folder
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.exists() else {}
    settings.pop("chat_template", None)  # the file beside it holds the template of the training
    settings_path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    if template.jinja_text is not None:
        (folder / "chat_template.jinja").write_text(template.jinja_text, encoding="utf-8")


def _model_card(config: SFTConfig, template: Template) -> str:
    base = config.model.path or f"fresh parameters ({config.model.from_config})"
    return f"""# Policy

Fine-tuned by finetooth from {base} on {config.data.train}, with the {template.name} template.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

policy = AutoModelForCausalLM.from_pretrained("{config.output_dir}/final")
tokenizer = AutoTokenizer.from_pretrained("{config.output_dir}/final")
```
"""
