"""A small byte-level BPE tokenizer with ChatML's control tokens, made on the spot."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "What is two and two? Two and two is four. The answer is four, said the assistant to the user. " * 4


def write_small_tokenizer(folder: Path, *, chat_template: str | None = None) -> str:
    """Writes tokenizer.json and tokenizer_config.json; returns the folder's name.

    320 entries, no BOS; <|im_end|> ends a turn, <|endoftext|> pads. Text decodes to itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=317, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": chat_template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)
