"""Answered questions of two to six options, made from a seed, for the tests of calibration and ensembles."""

import numpy as np

from strata.engine.types import Question, QuestionScores


def make_row(scores, answer=None, question_id="1"):
    values = np.asarray(scores, dtype=np.float64)
    shifted = np.exp(values - values.max())
    question = Question(id=question_id, prompt="p", options=("x",) * len(values), answer=answer)
    return QuestionScores(question=question, scores=values, probabilities=shifted / shifted.sum())


def planted_rows(num_questions, seed, boldness=1.0, sizes=(2, 3, 4, 5, 6)):
    """Rows whose answers are drawn from softmax(z), which the scores give as `boldness` * z."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(num_questions):
        logits = generator.normal(scale=1.5, size=generator.choice(sizes))
        chances = np.exp(logits) / np.exp(logits).sum()
        answer = int(generator.choice(len(logits), p=chances))
        rows.append(make_row(boldness * logits, answer, str(number)))
    return rows
