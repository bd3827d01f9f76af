"""A strata member as reranker: the same scores as `strata score` gives each passage alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from strata.engine.config import ScoreConfig
from strata.engine.machine.settings import MachineSettings
from strata.engine.run.score import score_questions
from strata.engine.scorer import Scorer
from strata.scripts.contexts.rerank_member import (
    RELEVANCE_TEMPLATE,
    MemberScorer,
    deal_options,
    relevance_members,
)


@pytest.mark.parametrize(
    ("num_texts", "sizes"), [(0, []), (1, [1]), (26, [26]), (27, [13, 14]), (60, [20, 20, 20])]
)
def test_texts_are_dealt_to_questions_of_at_most_26_options(num_texts: int, sizes: list[int]) -> None:
    hands = deal_options(num_texts)
    assert [len(hand) for hand in hands] == sizes
    assert [place for hand in hands for place in hand] == list(range(num_texts))


def test_scores_are_those_of_each_passage_alone(checkpoint, fixed_rates, tmp_path: Path) -> None:
    model = checkpoint("llama-gqa")
    queries = ["What makes the tide turn?", "Which metals were melted?", "nothing"]
    texts = [[f"The moon and {number} stones" for number in range(28)], ["tin and iron"], []]
    with MemberScorer(relevance_members(model), MachineSettings(devices="cpu")) as scorer:
        scores = scorer(queries, texts)
    assert [len(own) for own in scores] == [28, 1, 0]

    template = tmp_path / "relevance.yaml"
    written = {"text": RELEVANCE_TEMPLATE.text, "labels": ["yes", "no"]}
    template.write_text(json.dumps(written), encoding="utf-8")
    pairs = [(query, text) for query, own in zip(queries, texts, strict=True) for text in own]
    rows = [
        {"id": str(number), "question": query, "options": [text, "other"]}
        for number, (query, text) in enumerate(pairs)
    ]
    path = tmp_path / "alone.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    alone = score_questions(
        ScoreConfig.from_flags(
            model=model,
            questions=path,
            out=tmp_path / "run",
            head="yes-no",
            template=str(template),
            devices="cpu",
        )
    )
    expected = [row.scores[0] for row in alone.scores]
    assert np.ptp(expected) > 0
    assert np.concatenate(scores) == pytest.approx(expected, abs=1e-4)


def test_the_model_is_opened_once_for_all_calls(checkpoint, fixed_rates, monkeypatch) -> None:
    opened: list[Scorer] = []
    plain = Scorer.open.__func__

    def count(cls: type[Scorer], *members: object, **settings: object) -> Scorer:
        opened.append(plain(cls, *members, **settings))
        return opened[-1]

    monkeypatch.setattr(Scorer, "open", classmethod(count))
    queries, texts = ["What makes the tide turn?", "Which metals?"], [["the moon", "tin"], ["copper"]]
    with MemberScorer(relevance_members(checkpoint("llama-gqa")), MachineSettings(devices="cpu")) as scorer:
        assert opened == []
        together = scorer(queries, texts)
        alone = [scorer([query], [own])[0] for query, own in zip(queries, texts, strict=True)]
        assert scorer(["nobody answers"], [[]])[0].shape == (0,)
    assert len(opened) == 1
    for first, again in zip(together, alone, strict=True):
        np.testing.assert_allclose(again, first, atol=1e-5)
