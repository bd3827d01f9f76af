"""Requests as lm-evaluation-harness makes them, and how its answers and ours are compared."""

from __future__ import annotations

import pytest

SHOTS = "Question: Warm water\nAnswer: rises\n\nQuestion: What pulls?\nAnswer: the moon\n\n"
PAIRS = [
    (f"{SHOTS}Question: What carries sand?\nAnswer:", " the river"),
    (f"{SHOTS}Question: What carries sand?\nAnswer:", " a bee or two"),
    (f"{SHOTS}Question: Copper, iron and\nAnswer: ", "tin"),
    ("", "The moon pulls on the ocean"),
    ("<s>The sun", " and the moon"),
    ("Numbers", " 3,000\n\u00e9t\u00e9 \U0001f600"),
    ("The tide ", " turns"),
]


def requests(kind, arguments):
    """The harness' requests of a kind, of a task `few`: named twice, as its versions differ in where."""
    instance = pytest.importorskip("lm_eval.api.instance")
    given = {"request_type": kind, "doc": {}, "task_name": "few"}
    return [
        instance.Instance(**given, arguments=each, idx=index, doc_id=index, metadata=("few", index, 1))
        for index, each in enumerate(arguments)
    ]


def rolling_requests(texts):
    """The harness' requests for whole texts: from version 0.5 on with an empty context before each."""
    version = pytest.importorskip("lm_eval").__version__
    return requests("loglikelihood_rolling", [(text,) if version < "0.5" else ("", text) for text in texts])


def assert_same_totals(found, expected):
    """Answers to `rolling_requests`: numbers, or from version 0.5 on pairs that say that none is greedy."""
    if isinstance(expected[0], tuple):
        assert_same(found, expected)
    else:
        assert found == pytest.approx(expected, abs=1e-3)


def answers_of(sample):
    """The answers to a question's requests; from version 0.5 on, each is in a list of its own."""
    return [
        answer[0] if isinstance(answer[0], tuple | list) else answer for answer in sample["filtered_resps"]
    ]


def assert_same(found, expected):
    for (total, is_greedy), (their_total, their_greedy) in zip(found, expected, strict=True):
        assert total == pytest.approx(their_total, abs=1e-3)
        assert is_greedy == their_greedy
