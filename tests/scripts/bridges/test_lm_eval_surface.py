"""What else the harness asks a model for, and the command that brings ours to it. Skipped without lm-eval."""

from __future__ import annotations

import json

import pytest
import yaml

from strata.engine.types import InputError
from strata.scripts import cli
from strata.scripts.bridges.lm_eval_command import register_model

from .harness_requests import PAIRS, assert_same, requests, rolling_requests

pytest.importorskip("lm_eval.evaluator")

pytestmark = [pytest.mark.usefixtures("fixed_rates"), pytest.mark.filterwarnings("ignore")]

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}{{ mood }}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
)
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Who turns?"},
    {"role": "assistant", "content": "The tide"},
]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, NO_SYSTEM], ids=["system", "no system"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats(template, add_generation_prompt, strata_model, harness_model, checkpoint):
    folder = checkpoint("llama-gqa")
    ours = strata_model(folder, chat_template_args={"mood": ""})
    theirs = harness_model(folder, chat_template_args={"mood": ""})
    ours.tokenizer.chat_template = theirs.tokenizer.chat_template = template
    found = ours.apply_chat_template(CHAT, add_generation_prompt=add_generation_prompt)
    assert found == theirs.apply_chat_template(CHAT, add_generation_prompt=add_generation_prompt)
    assert "Who turns?" in found
    assert ours.chat_template(True) == theirs.chat_template(True) == template
    assert ours.tokenizer_name == theirs.tokenizer_name


def test_a_model_without_a_chat_template(strata_model, checkpoint):
    with pytest.raises(InputError, match="no chat template; expected no --apply_chat_template"):
        strata_model(checkpoint("llama-gqa")).apply_chat_template(CHAT)


def test_answers_are_cached_as_they_come(strata_model, checkpoint):
    model = strata_model(checkpoint("llama-gqa"))
    kept = {}

    class Hook:
        def add_partial(self, attribute, arguments, answer):
            kept[attribute, arguments] = answer

    model.set_cache_hook(Hook())
    found = model.loglikelihood(requests("loglikelihood", PAIRS))
    assert [kept["loglikelihood", pair] for pair in PAIRS] == found
    rolling = rolling_requests(["The tide"])
    (total,) = model.loglikelihood_rolling(rolling)
    assert kept.pop(("loglikelihood_rolling", rolling[0].args)) == total
    assert len(kept) == len(PAIRS)


def test_a_second_run_comes_from_the_harness_cache(strata_model, checkpoint, tmp_path):
    api = pytest.importorskip("lm_eval.api.model")
    pytest.importorskip("sqlitedict")
    model = strata_model(checkpoint("llama-gqa"))
    cached = api.CachingLM(model, str(tmp_path / "cache.db"))
    asked = requests("loglikelihood", PAIRS)
    first = cached.loglikelihood(asked)
    computed = model.tokens_computed
    assert_same(cached.loglikelihood(asked), first)
    assert model.tokens_computed == computed > 0


def test_generation_is_refused_by_the_name_of_its_task(strata_model, checkpoint):
    model = strata_model(checkpoint("llama-gqa"))
    with pytest.raises(InputError, match=r"--tasks few: it generates text \(generate_until\)"):
        model.generate_until(requests("generate_until", [("Once", {"until": ["."]})]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 10**6}, "max_length=1000000: the model's window is"),
        ({"peft": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings, message, strata_model, checkpoint):
    with pytest.raises(InputError, match=message):
        strata_model(checkpoint("llama-gqa"), **settings)


def test_a_continuation_longer_than_the_window_is_refused(strata_model, checkpoint):
    model = strata_model(checkpoint("llama-gqa"), max_length=4)
    with pytest.raises(InputError, match=r"a continuation of \d+ tokens; expected at most max_length=4"):
        model.loglikelihood(requests("loglikelihood", [("A", " stone falls as fast as a feather")]))


def test_a_batch_size_has_no_effect_and_is_told(strata_model, checkpoint, caplog):
    strata_model(checkpoint("llama-gqa"), batch_size=16)
    assert "batch_size=16 has no effect" in caplog.text


def test_registering_keeps_the_models_of_the_harness():
    register_model()
    register_model()
    from lm_eval.api.registry import get_model

    from strata.scripts.bridges.lm_eval import StrataLM

    assert get_model("strata") is StrataLM
    assert get_model("hf").__name__ == "HFLM"


def test_the_command_hands_its_arguments_on(task, data_set_cache, checkpoint, tmp_path, capsys):
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(task))
    words = f"lm-eval --model strata --model_args pretrained={checkpoint('llama-gqa')},dtype=float32"
    words += f" --tasks few --include_path {tmp_path} --device cpu --output_path {tmp_path / 'out.json'}"
    assert cli.main(words.split()) == 0
    (results,) = tmp_path.glob("out*.json")
    assert set(json.loads(results.read_text())["results"]) == {"few"}
    assert "acc_norm" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_in_a_line(task, checkpoint, tmp_path, capsys):
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(task))
    words = f"lm-eval --model strata --model_args pretrained={tmp_path / 'nowhere'} --tasks few"
    assert cli.main([*words.split(), "--include_path", str(tmp_path)]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("strata: --model_args: pretrained=")


def test_help_is_that_of_the_harness(capsys):
    assert cli.main(["lm-eval", "run", "--help"]) == 0
    assert "--num_fewshot" in capsys.readouterr().out
