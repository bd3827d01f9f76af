"""Owns chat templates as models have them, small, and a tokenizer that has one of them."""

import copy
import functools

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<turn>", "<end>"]
TEXT = "Answer the question with the letter of the correct option. Question: A. B. C. Yes No system user"

CHATML = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}\
{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Writes BOS, refuses a system message, and has the assistant's answer behind a space, as Llama 2's.
INST = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}\
{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""

# Writes BOS, names turns, and begins the answer on a line of its own that the generation prompt lacks.
TURNS = """\
{{ bos_token }}{% for message in messages %}{{ '<turn>' + message['role'] + ':' }}\
{{ '\\n' + message['content'] | trim + '<end>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<turn>assistant:' }}{% endif %}"""

CHAT_TEMPLATES = {"chatml": CHATML, "inst": INST, "turns": TURNS}
LEADS = {"chatml": "", "inst": " ", "turns": "\n"}
NUM_BOS = {"chatml": 0, "inst": 1, "turns": 1}


@functools.cache
def _backend():
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    # As Llama's and Gemma's: a BOS is put before every text, so that one in the template would be doubled.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def chat_tokenizer(name):
    """A tokenizer that adds BOS, with a chat template by name, None for one without."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=copy.deepcopy(_backend()), bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = None if name is None else CHAT_TEMPLATES[name]
    return fast
