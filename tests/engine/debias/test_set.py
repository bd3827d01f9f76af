"""Options as a set: against transformers under a 4D mask, and equal scores under every order, however cut."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from strata.engine.prompts.siblings import sibling_tokens
from strata.engine.types import InputError

from ...families import FAMILIES
from ...reference import read_prompts
from ...sample_questions import QUESTIONS, write_jsonl
from .set_reference import SetReference

TOLERANCE = 1e-5
LAYOUTS = {
    "whole": {"micro_batch_tokens": 4096},
    "cut": {"micro_batch_tokens": 17},
    "two devices": {"devices": "cpu,cpu", "micro_batch_tokens": 40},
    "groups": {"devices": "cpu,cpu", "num_groups": 3, "micro_batch_tokens": 23},
}
LISTED = {"loglik": {"head": "loglik", "normalize": "none"}, "yes-no": {"head": "yes-no"}}


def by_id(run) -> dict[str, np.ndarray]:
    return {row.question.id: row.scores for row in run.scores}


def reorder(rows: list[dict], order_of) -> list[dict]:
    return [row | {"options": [row["options"][index] for index in order_of(row)]} for row in rows]


@pytest.mark.parametrize(
    ("family", "head"),
    [*((family, "loglik") for family in FAMILIES), ("llama-gqa", "yes-no"), ("gemma2", "yes-no")],
)
def test_scores_are_those_of_transformers_under_a_dense_mask(family, head, checkpoint, score):
    model = checkpoint(family)
    run = score(model=model, debias="set", micro_batch_tokens=29, **LISTED[head])
    assert all(branch["siblings"] for line in read_prompts(run.out) for branch in line["branches"])
    expected = SetReference(model).score(run.out, head)
    for name, scores in by_id(run).items():
        np.testing.assert_allclose(scores, expected[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llama-gqa", "mistral", "gemma2", "gemma3"])
def test_scores_do_not_depend_on_how_the_stream_is_cut(family, layout, checkpoint, score):
    settings = {"model": checkpoint(family), "debias": "set", **LISTED["loglik"]}
    whole, cut = by_id(score(**settings, **LAYOUTS["whole"])), by_id(score(**settings, **LAYOUTS[layout]))
    for name, scores in whole.items():
        np.testing.assert_allclose(cut[name], scores, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_order_of_the_options_has_the_same_scores(layout, checkpoint, score, tmp_path):
    """Each order is a question of its own: all 24 of four options, in one run."""
    row = QUESTIONS[0]
    rows = [
        row | {"id": str(order), "options": [row["options"][index] for index in order], "answer": 0}
        for order in permutations(range(4))
    ]
    path = write_jsonl(tmp_path / "orders.jsonl", rows)
    run = score(
        model=checkpoint("mistral"), questions=path, debias="set", **LISTED["loglik"], **LAYOUTS[layout]
    )
    found = by_id(run)
    for order in permutations(range(4)):
        stated = found[str((0, 1, 2, 3))]
        np.testing.assert_allclose(found[str(order)], stated[list(order)], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3"])
def test_nor_does_the_order_of_the_tokens_matter(family, checkpoint, score, monkeypatch):
    """Equal sets become equal tokens; the mask alone, without that, leaves only the order of sums."""
    settings = {"model": checkpoint(family), "debias": "set", "micro_batch_tokens": 31, **LISTED["yes-no"]}
    sorted_tokens = score(**settings)
    in_order = sibling_tokens._in_order
    monkeypatch.setattr(
        sibling_tokens, "_in_order", lambda tokens: bytes(255 - byte for byte in in_order(tokens))
    )
    reverse = score(**settings)
    first, second = (read_prompts(run.out)[0]["branches"][0]["ids"] for run in (sorted_tokens, reverse))
    assert first != second
    for name, scores in by_id(sorted_tokens).items():
        np.testing.assert_allclose(by_id(reverse)[name], scores, rtol=0, atol=TOLERANCE)


ODD = {
    "two": ["the moon", "a stone"],
    "26": [f"{number} stones" for number in range(26)],
    "equal": ["the moon", "a stone", "the moon"],
    "one is another's beginning": ["the moon", "the moon pulls", "the"],
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_odd_sets_of_options(options, checkpoint, score, tmp_path):
    rows = [{"id": "q", "question": "What?", "options": options, "context": "The sea."}]
    model, path = checkpoint("llama-gqa"), write_jsonl(tmp_path / "odd.jsonl", rows)
    back = write_jsonl(tmp_path / "back.jsonl", reorder(rows, lambda row: range(len(options) - 1, -1, -1)))
    settings = {"model": model, "debias": "set", "micro_batch_tokens": 19, **LISTED["loglik"]}
    run, turned = score(questions=path, **settings), score(questions=back, **settings)
    np.testing.assert_allclose(run.scores[0].scores, turned.scores[0].scores[::-1], rtol=0, atol=TOLERANCE)
    expected = SetReference(model).score(run.out, "loglik")["q"]
    np.testing.assert_allclose(run.scores[0].scores, expected, rtol=0, atol=1e-4)
    if options[0] == options[-1]:
        assert abs(run.scores[0].scores[0] - run.scores[0].scores[-1]) < TOLERANCE


def test_the_list_decides_the_scores(checkpoint, score):
    """The options' tokens are attended to: without the list, scores are others."""
    settings = {"model": checkpoint("llama-gqa"), **LISTED["loglik"]}
    listed, alone = by_id(score(debias="set", **settings)), by_id(score(**settings))
    assert all(np.abs(listed[name] - alone[name]).max() > 0.01 for name in alone)


def test_contexts_are_cut_by_positions_not_by_tokens(checkpoint, score, tmp_path):
    """Options lie side by side: all of them together count as the longest."""
    rows = [
        {
            "id": "q",
            "question": "What?",
            "options": ["a long river " * 5, "sand " * 8],
            "context": "Sea. " * 80,
        }
    ]
    path = write_jsonl(tmp_path / "long.jsonl", rows)
    run = score(
        model=checkpoint("llama-gqa"), questions=path, debias="set", max_tokens=120, **LISTED["loglik"]
    )
    (line,) = read_prompts(run.out)
    longest = 0
    for branch in line["branches"]:
        lengths = [end - start for start, end in branch["siblings"]]
        longest = max(longest, branch["targets"][-1][0] + 1 - sum(lengths) + max(lengths))
    assert 110 <= longest <= 120
    assert run.record["measured"]["truncated_questions"] == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"head": "letters"}, "head letters does not score an option"),
        ({"head": "loglik", "template": "statement"}, "expected .* the options to be listed"),
        ({"head": "loglik", "text": "{{ options }} {{ option }}"}, "letters, which tell their order"),
        (
            {"head": "loglik", "text": "{% for _, t in options %}{{ t }}{% endfor %}{{ option }}"},
            "nothing stands between",
        ),
        (
            {
                "head": "loglik",
                "text": "{% for l, t in options %}{{ l }}. {{ t }}\n{% endfor %}Answer: {{ option }}",
            },
            "letters, which tell their order",
        ),
        (
            {
                "head": "loglik",
                "text": "{% for _, t in options %}{{ loop.index }} {{ t }}\n{% endfor %}Answer: {{ option }}",
            },
            "in one and the same way",
        ),
        (
            {"head": "loglik", "text": "{{ options|map(attribute=1)|join(', ') }}\nAnswer: {{ option }}"},
            "in one and the same way",
        ),
        (
            {
                "head": "loglik",
                "text": "{% for _, t in options %}- {{ t|upper }}\n{% endfor %}Answer: {{ option }}",
            },
            "to be used as they are|to be listed",
        ),
    ],
)
def test_what_cannot_be_a_set_is_refused(settings, expected, checkpoint, score, tmp_path):
    settings = dict(settings)
    if "text" in settings:
        (tmp_path / "template.txt").write_text(settings.pop("text"))
        settings["template"] = str(tmp_path / "template.txt")
    with pytest.raises(InputError, match=expected) as refused:
        score(model=checkpoint("llama-gqa"), debias="set", **settings)
    assert "\n" not in str(refused.value)


def test_few_shot_examples_stand_before_the_set(checkpoint, score, questions):
    model = checkpoint("llama-gqa")
    run = score(model=model, debias="set", shots=questions, num_shots=1, **LISTED["loglik"])
    expected = SetReference(model).score(run.out, "loglik")
    for name, scores in by_id(run).items():
        np.testing.assert_allclose(scores, expected[name], rtol=0, atol=1e-4)
