"""Commands with which other programs run a policy, given in its folder."""

from collections.abc import Iterator
from typing import Literal

from finetooth.config.schema import AdapterConfig
from finetooth.reporting.prompt_format import PromptFormat, ollama_template

Form = Literal["folder", "merged", "adapter", "pt"]

_RANKS = (8, 16, 32, 64, 128, 256, 512)  # those that vLLM makes room for
_OF_ADAPTER = "--tokenizer . --chat-template chat_template.jinja"
_QUESTION = '\'{"model": "MODEL", "messages": [{"role": "user", "content": "Hello."}]}\''


def serving_commands(form: Form, base: str, adapter: AdapterConfig) -> Iterator[tuple[str, str]]:
    """Titles and shell commands.

    base: what an adapter's base model is called on the command line
    """
    if form == "pt":
        yield "finetooth", "finetooth chat ."
        return
    if form == "adapter":
        if adapter.type == "lora" and adapter.modules_to_save is None:
            rank = next((rank for rank in _RANKS if rank >= adapter.r), adapter.r)
            lora = f"vllm serve {base} --enable-lora --lora-modules policy=. --max-lora-rank {rank}"
            yield "vLLM, without rows of tokens that were trained besides", f"{lora} {_OF_ADAPTER}"
        arguments = f"pretrained={base},peft=.,tokenizer=."
    else:
        yield "vLLM", f"vllm serve . --served-model-name policy\n{_asked('policy')}"
        yield "transformers, as a server", f"transformers serve .\n{_asked('.')}"
        convert = "python llama.cpp/convert_hf_to_gguf.py . --outfile policy.gguf --outtype auto"
        yield "llama.cpp", f"{convert}\nllama-server -m policy.gguf --jinja"
        arguments = "pretrained=."
    evaluate = f"lm_eval --model hf --model_args {arguments} --tasks gsm8k --apply_chat_template"
    yield "lm-eval", f"{evaluate} --batch_size auto"
    yield "Upload to the hub", "hf upload OWNER/NAME ."


def ollama_modelfile(shown: PromptFormat) -> str | None:
    """What Ollama builds a policy from; None where the template cannot be told in its terms."""
    text = ollama_template(shown)
    if text is None:
        return None
    stops = [f'PARAMETER stop "{name}"' for name in shown.stop_tokens if '"' not in name]
    return "\n".join(["FROM .", f'TEMPLATE """{text}"""', *stops])


def _asked(model: str) -> str:
    """The request that both servers answer, on the port that each listens on by itself."""
    question = _QUESTION.replace("MODEL", model)
    return f"curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' -d {question}"
