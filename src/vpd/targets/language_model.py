"""The language models that can be decomposed."""

from vpd.targets.gpt2 import GPT2
from vpd.targets.llama import Llama
from vpd.targets.simple_mlp_lm import LlamaSimpleMLP

LanguageModel = LlamaSimpleMLP | Llama | GPT2
