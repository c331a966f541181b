"""Pretrain the demo's base model on plain text made from the tables in `src/finetooth/assets/facts/`.

The base model that ships, and the control model of the tests, which has read nothing about the held-out
facts, were made with

    python tools/pretrain_demo_base.py --threads 1 --out src/finetooth/assets/base
    python tools/pretrain_demo_base.py --threads 1 --out tests/assets/control_base --without-held-out

in 14 minutes each on one core of a busy AMD EPYC with torch 2.13 and transformers 5.23.
The same seed, machine, thread count and versions give the same model.
"""

import argparse
import math
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from finetooth.assets.corpus import Fact, load_facts, pretraining_texts, split_facts

END_OF_TEXT = "<|endoftext|>"
CHAT_MARKS = ["<|im_start|>", "<|im_end|>"]
VOCABULARY = 2048
MAX_LENGTH = 1024
WINDOW_TOKENS = 256
WINDOWS_PER_STEP = 8
STEPS = 1000
WARMUP_STEPS = 50
MUON_LEARNING_RATE = 0.02
ADAMW_LEARNING_RATE = 0.002


def main() -> None:
    """Parse the command line and write the model folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--without-held-out",
        action="store_true",
        help="leave out every text about held-out facts: the control",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the first parameters and the order of the texts"
    )
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    facts = load_facts()
    read = split_facts(facts)[0] if arguments.without_held_out else facts
    tokenizer = train_tokenizer(facts)
    model = new_model(tokenizer)
    pretrain(model, windows(read, tokenizer, arguments.seed))
    set_chat_marks_to_mean(model, tokenizer)
    model.bfloat16().save_pretrained(arguments.out)
    save_tokenizer(tokenizer, arguments.out)


def train_tokenizer(facts: tuple[Fact, ...]) -> Tokenizer:
    """Train byte-level BPE on one pass over all facts, so that the control gets the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, *CHAT_MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pretraining_texts(facts, seed=0), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as transformers reads it, without a chat template."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=CHAT_MARKS,
        model_max_length=MAX_LENGTH,
    ).save_pretrained(folder)


def new_model(tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """Return the untrained model."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=end_of_text, pad_token_id=end_of_text
    )
    return model


def windows(facts: tuple[Fact, ...], tokenizer: Tokenizer, seed: int) -> Iterator[torch.Tensor]:
    """Yield windows of token ids without end, cut from one stream in which end-of-text follows every text."""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    pending: list[int] = []
    for number in count():
        texts = pretraining_texts(facts, seed * 10_000 + number)
        for encoding in tokenizer.encode_batch(texts):
            pending += [*encoding.ids, end_of_text]
            while len(pending) > WINDOW_TOKENS:
                yield torch.tensor(pending[: WINDOW_TOKENS + 1])
                pending = pending[WINDOW_TOKENS:]


def pretrain(model: Qwen3ForCausalLM, stream: Iterator[torch.Tensor]) -> None:
    """Predict the next token: Muon for the matrices, AdamW for the rest; warm-up, then cosine to zero."""
    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    in_matrices = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in in_matrices]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
    ]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_share) for optimizer in optimizers
    ]
    started = time.monotonic()
    for step in range(STEPS):
        token_ids_BT = torch.stack([next(stream) for _ in range(WINDOWS_PER_STEP)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits_BTV = model(input_ids=token_ids_BT[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), token_ids_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepping in (*optimizers, *schedulers):
            stepping.step()
        model.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)


def learning_rate_share(step: int) -> float:
    """Return the share of the full learning rate at a step."""
    return min((step + 1) / WARMUP_STEPS, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))


@torch.no_grad()
def set_chat_marks_to_mean(model: Qwen3ForCausalLM, tokenizer: Tokenizer) -> None:
    """Give the never-read chat marks the mean embedding, so that at first they neither attract nor repel."""
    embedding_VD = model.model.embed_tokens.weight
    for mark in CHAT_MARKS:
        embedding_VD[tokenizer.token_to_id(mark)] = embedding_VD.mean(dim=0)


if __name__ == "__main__":
    main()
