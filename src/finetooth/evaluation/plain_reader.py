"""A program of its own that loads a folder as anybody would, and tells what comes out. It knows no finetooth.

    python plain_reader.py FOLDER REQUEST.json ANSWERS

REQUEST.json   {"documents": [[1, 5, …], …], "prompts": [[1, 5], …], "max_new_tokens": 64, "device": "cpu",
                "base": null or {"dtype": "float32", "is_in_four_bits": false} for an adapter,
                "conversations": [{"messages": […], "tools": null, "add_generation_prompt": true}, …]}
ANSWERS/       logits.safetensors, "0", "1", …: float32 [T, V] of each document
               said.json {"answers": [[…], …], "stop_token_ids": […], "rendered": [[…], …],
                          "dtype": "float32"}

An answer holds its stop token, if it came to one, and padding behind it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig


def main(folder: Path, request: dict[str, Any], answers: Path) -> None:
    """Answers a request about a folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, request["device"], request["base"])
    logits = {str(number): read_logits(model, ids) for number, ids in enumerate(request["documents"])}
    save_file(logits, answers / "logits.safetensors")
    named = model.generation_config.eos_token_id
    said = {
        "answers": answer(model, request["prompts"], request["max_new_tokens"]),
        "stop_token_ids": named if isinstance(named, list) else [] if named is None else [named],
        "rendered": [
            tokenizer.apply_chat_template(**one, return_dict=False) for one in request["conversations"]
        ],
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    (answers / "said.json").write_text(json.dumps(said), encoding="utf-8")


def load_model(folder: Path, device: str, base: dict[str, Any] | None) -> Any:
    """The model of a folder; or an adapter in the base that it names, with the folder's generation config."""
    model: Any
    if base is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
        return model.to(device).eval()
    from peft import AutoPeftModelForCausalLM

    options: dict[str, Any] = {"dtype": getattr(torch, base["dtype"])}
    if base["is_in_four_bits"]:
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options["dtype"],
        )
        options |= {"quantization_config": settings, "device_map": {"": device}}
    model = AutoPeftModelForCausalLM.from_pretrained(folder, **options)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    return (model if base["is_in_four_bits"] else model.to(device)).eval()


@torch.no_grad()
def read_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    """float32 [T, V] of a document alone."""
    ids = torch.tensor([token_ids], device=model.device)
    return model(input_ids=ids, use_cache=False).logits[0].float().cpu().contiguous()


@torch.no_grad()
def answer(model: Any, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """What it writes greedily behind prompts, all at once, padded on the left."""
    if not prompts:
        return []
    longest = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    rows = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    written = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return written[:, longest:].tolist()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")), Path(sys.argv[3]))
