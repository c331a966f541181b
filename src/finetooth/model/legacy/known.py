"""The layouts that are read and written. To read those of another system, add its table here."""

from finetooth.model.legacy.configurable_gpt import CONFIGURABLE_GPT
from finetooth.model.legacy.per_head_gpt import PER_HEAD_GPT
from finetooth.model.legacy.simple_llama import SIMPLE_LLAMA

LAYOUTS = (CONFIGURABLE_GPT, PER_HEAD_GPT, SIMPLE_LLAMA)
