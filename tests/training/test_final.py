"""`final/` is a model like any other: it renders as training did, answers, and stops by itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.documents import small_policy
from tests.small_run import VOCABULARY, write_base, write_records
from tests.small_tokenizer import write_small_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetooth.base.devices import DeviceManager
from finetooth.base.files import check_folder
from finetooth.config.schema import (
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    SFTConfig,
    TrainingConfig,
)
from finetooth.data.preparation import prepare_data
from finetooth.data.records import Message
from finetooth.data.templates.template import Template, encode_prompt, resolve_template
from finetooth.data.tokenizer.tokenizer import load_tokenizer
from finetooth.model.load import load_policy
from finetooth.training.final import save_final
from finetooth.training.trainer import SFTTrainer

QUESTIONS = [f"What is {number}?" for number in range(4)]
ANSWERS = ["four " * number + f"is {number}." for number in range(4)]


def config_of(folder: Path, **data: Any) -> SFTConfig:
    return SFTConfig(
        model=ModelConfig(path=str(folder / "base")),
        data=DataConfig(train=str(folder / "train.jsonl"), dev=None, max_length=64, **data),
        training=TrainingConfig(
            max_steps=60,
            global_batch_size=4,
            learning_rate=1e-2,
            min_learning_rate=1e-3,
            warmup_steps=0,
            row_tokens=256,
            device="cpu",
        ),
        evaluation=EvaluationConfig(every=0),
        checkpoints=CheckpointsConfig(every=0, keep=1),
        output_dir=str(folder / "run"),
    )


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """final/ of a policy that was trained on four records until it knew them."""
    folder = tmp_path_factory.mktemp("run")
    write_small_tokenizer(folder / "base")
    write_records(folder / "train.jsonl", len(QUESTIONS))
    config = config_of(folder, template="chatml")
    prepared = prepare_data(config)
    policy = small_policy(vocab_size=VOCABULARY)
    SFTTrainer(config, policy=policy, train=prepared.train).train()
    save_final(folder / "final", policy=policy, template=prepared.template)
    return folder / "final"


def ask(folder: Path, question: str) -> str:
    """What plain transformers makes of a question, told nothing but a length."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    written = model.generate(**inputs, max_new_tokens=40)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize(("question", "answer"), list(zip(QUESTIONS, ANSWERS, strict=True)))
def test_plain_transformers_gets_the_answer_and_it_stops_by_itself(final: Path, question: str, answer: str):
    assert ask(final, question) == f"{answer}<|im_end|>"


def test_without_the_tokens_that_end_an_answer_it_would_not_stop(final: Path, tmp_path: Path):
    """Negative control: the same parameters with a generation config that names no stop token go on."""
    for path in final.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": None}))
    text = ask(tmp_path, QUESTIONS[1])
    assert text.startswith(f"{ANSWERS[1]}<|im_end|>")
    assert len(text) > len(f"{ANSWERS[1]}<|im_end|>")


def test_the_folder_is_complete_and_says_so(final: Path):
    assert sorted(path.name for path in final.iterdir()) == [
        *("MANIFEST.json", "chat_template.jinja", "config.json", "generation_config.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    assert check_folder(final) == []
    generation = GenerationConfig.from_pretrained(final)
    assert generation.eos_token_id == [AutoTokenizer.from_pretrained(final).eos_token_id]
    assert generation.pad_token_id is not None


CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is two?"}],
    [{"role": "system", "content": "Mine."}, {"role": "user", "content": " two {{ and }} 'two' "}],
    [
        {"role": "user", "content": "What is two?"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "And\n\nthen?"},
    ],
]
HARD_TEXT = "Be 'brief' and \"plain\": 50 % {{ of }} {% all %} {# text #} \\n \\ \n\n\ttwo  lines é 日本 😀 "
READS_ARGUMENTS = """
  {% macro closed() %}{% if thinking is defined and thinking is false %}[closed]{% endif %}{% endmacro -%}
{% for m in messages %}
  <|im_start|>{{ m.role }}{{ names[m.role] if names is defined }}
{{ m.content }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{{ closed() }}{{ number }}{{ nothing is none }}{{ words | join(",") }}{% endif %}
"""


def save_template(folder: Path, template: Template) -> Path:
    save_final(folder / "final", policy=small_policy(), template=template)
    return folder / "final"


def assert_renders_as_in_training(folder: Path, template: Template) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_template(folder, template))
    for messages in CONVERSATIONS:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == encode_prompt(template, [Message(**message) for message in messages])


@pytest.mark.parametrize("system", [None, "Be brief.", HARD_TEXT])
def test_chatml_renders_the_same_ids_with_the_system_text_in_it(tmp_path: Path, system: str | None):
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path / "base"))
    assert_renders_as_in_training(tmp_path, resolve_template("chatml", tokenizer, system=system))


@pytest.mark.parametrize("system", [None, HARD_TEXT])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"thinking": False},
        {
            "thinking": True,
            "number": -1.5e-7,
            "nothing": None,
            "words": ["a", HARD_TEXT],
            "names": {"user": HARD_TEXT},
        },
        {"thinking": None, "nothing": False},
    ],
    ids=str,
)
def test_a_template_renders_the_same_ids_with_its_arguments_in_it(
    tmp_path: Path, arguments: Mapping[str, Any], system: str | None
):
    (tmp_path / "mine.jinja").write_text(READS_ARGUMENTS)
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path / "base"))
    path = str(tmp_path / "mine.jinja")
    assert_renders_as_in_training(
        tmp_path, resolve_template(path, tokenizer, template_args=arguments, system=system)
    )


def test_qwen3_without_thinking_renders_the_same_ids(tmp_path: Path, shared: Path):
    tokenizer = load_tokenizer(str(shared / "tokenizers" / "qwen3"))
    path = str(shared / "templates" / "qwen3.jinja")
    template = resolve_template(path, tokenizer, template_args={"enable_thinking": False}, system=HARD_TEXT)
    assert_renders_as_in_training(tmp_path, template)


def test_arguments_that_are_left_out_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: the bare template renders other ids."""
    (tmp_path / "mine.jinja").write_text(READS_ARGUMENTS)
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path / "base"))
    template = resolve_template(
        str(tmp_path / "mine.jinja"), tokenizer, template_args={"thinking": False}, system="Be brief."
    )
    monkeypatch.setattr("finetooth.training.final.exported_template", lambda template: template.jinja_text)
    with pytest.raises(AssertionError):
        assert_renders_as_in_training(tmp_path, template)


def test_the_template_of_the_training_takes_the_place_of_the_tokenizers_own(tmp_path: Path):
    source = write_small_tokenizer(tmp_path / "base", chat_template="{{ messages }}")
    template = resolve_template("chatml", load_tokenizer(source))
    tokenizer = AutoTokenizer.from_pretrained(save_template(tmp_path, template))
    assert tokenizer.chat_template == template.jinja_text


def test_sampling_settings_that_came_with_the_model_stay(tmp_path: Path):
    """They are the user's; even those that transformers refuses to save do not end a run at its last step."""
    template = resolve_template("chatml", load_tokenizer(write_small_tokenizer(tmp_path / "base")))
    write_base(tmp_path / "base")
    own = {"do_sample": False, "temperature": 0.6, "pad_token_id": 3, "eos_token_id": 1}
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(own))
    policy = load_policy(ModelConfig(path=str(tmp_path / "base")), devices=DeviceManager("cpu"))
    save_final(tmp_path / "final", policy=policy, template=template)
    saved = json.loads((tmp_path / "final" / "generation_config.json").read_text())
    stops = {"eos_token_id": list(template.stop_token_ids)}
    assert {name: saved[name] for name in own} == own | stops


def test_the_parameters_are_those_that_were_trained(tmp_path: Path):
    template = resolve_template("chatml", load_tokenizer(write_small_tokenizer(tmp_path / "base")))
    policy = small_policy()
    save_final(tmp_path / "final", policy=policy, template=template)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in policy.model.state_dict().items())
