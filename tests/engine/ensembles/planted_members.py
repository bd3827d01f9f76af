"""Members of planted strengths on the same answered questions, made from a seed."""

import numpy as np

from strata.engine.types import Question, QuestionScores


def make_row(scores, answer=None, question_id="1", **beside):
    values = np.asarray(scores, dtype=np.float64)
    shifted = np.exp(values - values.max())
    question = Question(id=question_id, prompt="p", options=("x",) * len(values), answer=answer)
    return QuestionScores(
        question=question, scores=values, probabilities=shifted / shifted.sum(), member_scores=beside
    )


def planted_members(num_questions, seed, sizes=(3, 4, 5)):
    """A good member; noise; and one that knows only what the good one does not, every third question."""
    generator = np.random.default_rng(seed)
    members = {"good": [], "noise": [], "complement": []}
    for number in range(num_questions):
        num_options = int(generator.choice(sizes))
        answer = int(generator.integers(num_options))
        truth = np.eye(num_options)[answer]
        is_blind = number % 3 == 0
        strengths = {"good": 0.0 if is_blind else 3.0, "noise": 0.0, "complement": 3.0 if is_blind else 0.0}
        for name, strength in strengths.items():
            scale = 2.5 if name == "noise" else 1.0
            scores = strength * truth + generator.normal(scale=scale, size=num_options)
            members[name].append(make_row(scores, answer, str(number)))
    return members
