"""Makes a base model with random parameters and a tokenizer that is trained on the records.

python bench/base_model.py SIZE RECORDS.jsonl FOLDER

FOLDER/lengths.json holds the mean length of the records, in tokens.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from work import config_of

# ChatML. Its generation block tells TRL which tokens are targets; finetooth finds the same ones without.
TEMPLATE = """{% for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}{{- '\\n' }}
{%- else %}
{{- message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# Larger models are saved as they are published.
_PARAMETERS_IN_FLOAT32 = 200e6
# Merges beyond these do not make the records shorter, and take minutes to find.
_LARGEST_VOCABULARY = 32768


def main(size: str, records: Path, folder: Path, seed: int) -> None:
    """Writes the model's and the tokenizer's files into the folder."""
    config = config_of(size)
    tokenizer = _train_tokenizer(records, vocab_size=min(config["vocab_size"], _LARGEST_VOCABULARY))
    tokenizer.save_pretrained(folder)
    (folder / "lengths.json").write_text(json.dumps({"mean": _mean_length(tokenizer, records)}))
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    with torch.device("meta"):
        num_parameters = Qwen3ForCausalLM(Qwen3Config(**config)).num_parameters()
    dtype = torch.float32 if num_parameters <= _PARAMETERS_IN_FLOAT32 else torch.bfloat16
    settings = {**config, **tokens, "bos_token_id": None, "max_position_embeddings": 40960, "dtype": dtype}
    torch.set_default_dtype(dtype)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(Qwen3Config(**settings))
    model.save_pretrained(folder)


def _train_tokenizer(records: Path, *, vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(records), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=control[0],
        eos_token=control[2],
        additional_special_tokens=[control[1]],
        chat_template=TEMPLATE,
    )


def _mean_length(tokenizer: PreTrainedTokenizerFast, records: Path) -> float:
    with records.open(encoding="utf-8") as file:
        conversations = [json.loads(line)["messages"] for line in file]
    texts = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in conversations]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return sum(map(len, encoded)) / len(encoded)


def _texts(records: Path) -> Iterator[str]:
    with records.open(encoding="utf-8") as file:
        for line in file:
            yield from (message["content"] for message in json.loads(line)["messages"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
