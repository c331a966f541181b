"""GPT-2 with a bias in its head: the one architecture here that transformers does not have.

It has a model type of its own, so that transformers by itself refuses its config.json instead of loading it
without the bias.
"""

from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

MODEL_TYPE = "finetooth_gpt2_head_bias"


class GPT2HeadBiasConfig(GPT2Config):
    """The config of GPT-2, under another model type."""

    model_type = MODEL_TYPE


class GPT2HeadBiasForCausalLM(GPT2LMHeadModel):
    """GPT-2 whose logits are `lm_head.weight` times hidden state, plus `lm_head.bias`."""

    config_class = GPT2HeadBiasConfig
    _tied_weights_keys = {}  # noqa: RUF012 - transformers reads it of the class

    def __init__(self, config: GPT2HeadBiasConfig):
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=True)
        self.post_init()


AutoConfig.register(MODEL_TYPE, GPT2HeadBiasConfig)
AutoModelForCausalLM.register(GPT2HeadBiasConfig, GPT2HeadBiasForCausalLM)
