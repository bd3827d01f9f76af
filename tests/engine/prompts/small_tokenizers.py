"""Owns the tokenizers that prompts are tested with, questions of odd characters, and how to render them."""

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from strata.engine.heads.debiasing.registry import choose_debias
from strata.engine.heads.registry import HEADS
from strata.engine.prompts.render import PromptSettings, render_prompts
from strata.engine.prompts.templates import load_template
from strata.engine.types import Question, RunWarnings

SHARED_MODELS = Path(__file__).parents[4] / "shared" / "models"
CORPUS = (
    "Below is an instruction. "
    "Question: Answer: yes no. Context: the moon pulls on the ocean. Response:\n\n###"
)


@functools.cache
def load_tokenizer(name):
    """One of the shared folder, or "bytes": byte-level, trimmed spans, `<s>` before and `</s>` behind."""
    if name != "bytes":
        return AutoTokenizer.from_pretrained(SHARED_MODELS / name)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS] * 4, trainer)
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), ends])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@functools.cache
def load_word_tokenizer(words):
    """Splits at white space, which it forgets; knows these words only and adds nothing."""
    vocabulary = {word: index for index, word in enumerate(("<unk>", *words.split()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(name != "bytes" and not (SHARED_MODELS / name).exists(), reason="absent"),
    )
    for name in ("bytes", "stories260k", "llama2-tokenizer")
]
# Texts to classify go another way: see test_texts.py.
HEAD_NAMES = tuple(name for name in HEADS if name != "classify")
CHARACTERS = st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from("ab {}%\n'\"\u00e9\U0001f600")
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from(["Answer: yes", "{{ option }}", "x ", "\n\n"])
QUESTIONS = st.builds(
    Question,
    id=st.just("7"),
    prompt=TEXTS,
    options=st.lists(TEXTS, min_size=2, max_size=4).map(tuple),
    context=TEXTS,
    row=st.just(3),
)


def render(questions, name="bytes", head="yes-no", template=None, warnings=None, **given):
    """Prompts of questions for a named head; `given` are settings of prompts, and `source`."""
    source = {"source": given.pop("source")} if "source" in given else {}
    template = template or load_template(None, head=HEADS[head])
    tokenizer = name if not isinstance(name, str) else load_tokenizer(name)
    given["debias"] = choose_debias(given.pop("debias", "none"))
    settings = PromptSettings(template=template, head=HEADS[head], **given)
    return render_prompts(questions, settings, tokenizer, warnings or RunWarnings(), **source)


def tokenize(name, text):
    """Token ids of a text, without what "bytes" puts behind it."""
    ids = load_tokenizer(name)(text).input_ids
    return ids[:-1] if name == "bytes" else ids


def num_tokens(branch):
    """Tokens of a branch, a predicted last one included."""
    return max(len(branch.token_ids), 1 + max((target.position for target in branch.targets), default=0))


def assert_consistent(name, branch):
    """The text tokenizes to what is computed and predicted."""
    predicted = [target for target in branch.targets if target.position == len(branch.token_ids)]
    assert [*branch.token_ids, *(target.token_id for target in predicted)] == tokenize(name, branch.text)
    assert branch.token_ids.dtype == np.int32
    for target in branch.targets[: len(branch.targets) - len(predicted)]:
        assert target.token_id in (None, branch.token_ids[target.position])
