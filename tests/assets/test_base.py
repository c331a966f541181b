"""The base knows the held-out facts but only rambles when asked; the control knows none of them."""

from importlib.resources import files
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetooth.assets.corpus import Fact, load_facts, split_facts

BASE = Path(str(files("finetooth.assets") / "base"))
CONTROL_BASE = Path(__file__).parent / "control_base"
TAUGHT, HELD_OUT = split_facts(load_facts())


@torch.no_grad()
def share_completed(folder: Path, facts: tuple[Fact, ...]) -> float:
    """Return the share of facts whose cloze is continued to the sentence.

    Greedy decoding gives the sentence exactly when each of its tokens after the cloze is the likeliest one,
    so one forward pass over the sentences tells.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    token_ids = [torch.tensor(tokenizer(fact.sentence)["input_ids"]) for fact in facts]
    likeliest_BT = model(pad_sequence(token_ids, batch_first=True)).logits.argmax(-1)
    starts = [len(tokenizer(fact.cloze)["input_ids"]) for fact in facts]
    completed = [
        torch.equal(likeliest_T[start - 1 : len(ids) - 1], ids[start:])
        for likeliest_T, start, ids in zip(likeliest_BT, starts, token_ids, strict=True)
    ]
    return sum(completed) / len(completed)


def test_the_base_knows_the_facts_and_the_control_only_those_it_has_read() -> None:
    assert share_completed(BASE, TAUGHT) > 0.95
    assert share_completed(BASE, HELD_OUT) > 0.95
    assert share_completed(CONTROL_BASE, TAUGHT) > 0.95
    assert share_completed(CONTROL_BASE, HELD_OUT) < 0.03


def test_asked_in_chatml_the_base_goes_on_with_questions_and_never_ends_its_turn() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    for fact in HELD_OUT[::40]:
        prompt = f"<|im_start|>user\n{fact.question}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        reply = tokenizer.decode(model.generate(prompt_ids, max_new_tokens=40)[0, prompt_ids.shape[1] :])
        assert "?\n" in reply
        assert fact.answer not in reply
        assert "<|" not in reply
