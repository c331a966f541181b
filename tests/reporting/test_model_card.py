"""The model card tells what was trained on what; its commands run; nothing from outside breaks it."""

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from ruamel.yaml import YAML
from tests.documents import small_policy
from tests.small_run import VOCABULARY
from tests.small_tokenizer import write_small_tokenizer

from finetooth.config.schema import AdapterConfig, DataConfig, ModelConfig, SFTConfig
from finetooth.data.ledger import Counts
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.reporting.model_card import _only_safe, model_card
from finetooth.reporting.prompt_format import ollama_template, prompt_format
from finetooth.reporting.run_facts import RunFacts
from finetooth.reporting.serving import Form, serving_commands
from finetooth.training.final import save_final

LORA = AdapterConfig(type="lora", r=20)
HOSTILE = [
    *("# heading", "<script>alert(1)</script>", "a\n---\nb", "```\n# out", "`", "``x`", "a|b|c", "&lt;"),
    *("![x](http://x)", "**b**", "[x](javascript:1)", "- item\n- item", "\x1b[31mred", "x: {y: [", "'\"", ""),
    *("{{ evil }}", "{% evil %}", "<!-- ", "日本 é 😀", "\u202eabc", "---", " ", "\r\n# cr"),
]
PROGRAMS = {"vllm", "curl", "transformers", "python", "llama-server", "ollama", "lm_eval", "hf"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = write_small_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return resolve_template("chatml", load_tokenizer(folder))


def config_of(
    *,
    path: str | None = "base",
    adapter: AdapterConfig | None = None,
    train: str | list[dict[str, Any]] = "train.jsonl",
    **data: Any,
) -> SFTConfig:
    model = ModelConfig(path=path) if path else ModelConfig(from_config="config.json", tokenizer="base")
    return SFTConfig(
        model=model,
        data=DataConfig(train=train, **data),
        adapter=adapter or AdapterConfig(),
        output_dir="runs/first",
    )


def facts_of(config: SFTConfig, *, reasons: Sequence[str] = (), name: str = "chatml") -> RunFacts:
    counts = Counts(
        records=1234 + len(reasons),
        kept=1234,
        dropped=len(reasons),
        documents=1234,
        tokens=56789,
        targets=12345,
        reasons=dict.fromkeys(reasons, 1),
    )
    return RunFacts(
        config=config,
        counts={"train": counts},
        first={"train_loss": 2.5, "dev_loss": 2.75},
        last={"train_loss": 0.5, "dev_loss": 0.75},
        summary={"num_steps": 82, "num_documents": 1234, "num_tokens": 99999, "num_targets": 22222},
        environment={
            "python": "3.11.7",
            "device": "cpu, 1 threads, fp32",
            "versions": {"finetooth": "0.1.0", "torch": "2.13.0"},
            "template": {"name": name, "now": None, "added_tokens": [], "untrained_tokens": []},
        },
    )


def front_matter(card: str) -> dict[str, Any]:
    head, _ = card.removeprefix("---\n").split("\n---\n", 1)
    return dict(YAML(typ="safe").load(head))


def blocks(card: str, language: str) -> list[str]:
    tokens = MarkdownIt().parse(card)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def outline(card: str) -> list[str]:
    """What Markdown makes of a card: the kinds of its blocks and of what stands within lines."""
    kinds: list[str] = []
    for token in MarkdownIt("commonmark").enable("table").parse(card.split("\n---\n", 1)[1]):
        kinds.append(f"{token.type} {token.tag}")
        kinds += [child.type for child in token.children or () if child.type != "text"]
    return kinds


def test_it_tells_what_was_trained_on_what(template: Template):
    facts = facts_of(config_of(path="org/base-1b"), reasons=["too long"])
    card = model_card(facts, template, dtype="bf16")
    for line in (
        "# `first`",
        "`org/base-1b`, fine-tuned by finetooth `0.1.0`.",
        "All parameters, as `bf16`.",
        "- `train`: 1 × `train.jsonl`",
        "- `dev`: 0.02 of the records, chosen by what they hold",
        "| `train` | 1,235 | 1,234 | 1 | 0 | 1,234 | 56,789 | 12,345 |",
        "- 1 × `too long`",
        "training.learning_rate: 2e-05",
        "82 steps over 1,234 documents; 99,999 tokens seen, 22,222 of them targets.",
        "On `cpu, 1 threads, fp32`, with Python `3.11.7`, `finetooth 0.1.0`, `torch 2.13.0`.",
        "| loss, held-out records | 2.75 | 0.75 |",
        "- an answer ends with `<|im_end|>`, which `generation_config.json` names",
    ):
        assert line in card.splitlines()


def test_the_front_matter_names_what_the_hub_knows_and_nothing_else(template: Template):
    on_hub = config_of(path="org/base-1b", train=[{"path": "hf://org/chats"}, {"path": "mine/a.jsonl"}])
    assert front_matter(model_card(facts_of(on_hub), template)) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["finetooth", "sft"],
        "base_model": "org/base-1b",
        "base_model_relation": "finetune",
        "datasets": ["org/chats"],
    }
    for path in ("/home/me/models/base", "./base", "base", None):
        matter = front_matter(model_card(facts_of(config_of(path=path)), template))
        assert matter.keys() == {"library_name", "pipeline_tag", "tags"}


def test_no_place_of_this_machine_is_told(template: Template):
    config = config_of(path="/home/me/base", train="/home/me/data/train.jsonl", dev="/home/me/data/dev.jsonl")
    card = model_card(facts_of(config, name="/home/me/templates/mine.jinja"), template)
    assert "/home" not in card
    assert "`mine.jinja`" in card
    assert "- `dev`: 1 × `dev.jsonl`" in card.splitlines()


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_from_outside_breaks_the_card(text: str, template: Template):
    """Names, reasons and template arguments that are Markdown, HTML, YAML or Jinja show as they are."""
    name = text.replace("/", "∕") or "x"
    arguments = {name: [text]}
    calm, hostile = (
        model_card(
            facts_of(
                config_of(path=word, train=f"{word}.jsonl", template_args={"a": values}),
                reasons=[word],
                name=word,
            ),
            template,
        )
        for word, values in (("word", {"word": ["word"]}), (name, arguments))
    )
    assert outline(hostile) == outline(calm)
    assert front_matter(hostile) == front_matter(calm)
    assert "html_block a" not in outline(hostile)
    assert "\x1b" not in hostile


def test_text_that_was_not_escaped_would_be_noticed():
    """Negative control."""
    with pytest.raises(AssertionError):
        _only_safe("<b>")


@pytest.mark.parametrize("form", ["folder", "merged", "adapter"])
def test_every_command_is_one_that_a_shell_reads(form: Form, template: Template):
    card = model_card(facts_of(config_of(path="org/base-1b", adapter=LORA)), template, form=form)
    commands = [line for block in blocks(card, "sh") for line in block.splitlines()]
    assert {shlex.split(command)[0] for command in commands} <= PROGRAMS
    assert len(commands) >= 3
    assert ("org/base-1b" in " ".join(commands)) == (form == "adapter")


def test_an_adapter_of_a_base_that_is_not_on_the_hub_leaves_its_place_open(template: Template):
    card = model_card(facts_of(config_of(path="/home/me/base", adapter=LORA)), template, form="adapter")
    assert "vllm serve BASE --enable-lora" in card
    assert dict(serving_commands("adapter", "BASE", AdapterConfig(type="lora")))["lm-eval"].startswith(
        "lm_eval --model hf --model_args pretrained=BASE,peft=.,"
    )


def test_the_python_of_the_card_runs_in_the_folder(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    card = model_card(facts_of(config_of()), template)
    save_final(tmp_path / "final", policy=small_policy(vocab_size=VOCABULARY), template=template, card=card)
    monkeypatch.chdir(tmp_path / "final")
    (code,) = blocks(Path("README.md").read_text(encoding="utf-8"), "python")
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code.replace("=256", "=4"), "README.md", "exec"), {})


# Ollama.


def rendered_as_ollama(text: str, *, system: str | None, prompt: str, response: str) -> str:
    """What Go makes of the templates that are written here."""
    choice = re.fullmatch(r"(?s){{ if \.System }}(.*?){{ else }}(.*?){{ end }}(.*)", text)
    if choice:
        text = (choice[1] if system is not None else choice[2]) + choice[3]
    values = {".System": system or "", ".Prompt": prompt, ".Response": response, '"{{"': "{{"}
    return re.sub(r"{{ (.*?) }}", lambda match: values[match[1]], text)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("own_system", [None, "Always {{ kind }}."])
def test_ollama_writes_what_the_template_writes(system: str | None, own_system: str | None, tmp_path: Path):
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path))
    template = resolve_template("chatml", tokenizer, system=own_system)
    text = ollama_template(prompt_format(template))
    assert text is not None
    messages = [Message("user", "Why?"), Message("assistant", "So.")]
    if system is not None:
        messages.insert(0, Message("system", system))
    listed, _ = template.variables(messages)
    expected = template.render(listed, None, add_generation_prompt=False)
    assert rendered_as_ollama(text, system=system, prompt="Why?", response="So.") == expected


def test_a_template_that_no_modelfile_can_hold_has_none(tmp_path: Path):
    (tmp_path / "mine.jinja").write_text(
        '"""{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path / "base"))
    template = resolve_template(str(tmp_path / "mine.jinja"), tokenizer)
    assert ollama_template(prompt_format(template)) is None
    assert "Modelfile" not in model_card(facts_of(config_of()), template)
