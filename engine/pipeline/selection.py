"""Which questions a stage takes, the hardest first, by what the stages before say of them."""

from __future__ import annotations

from strata.engine.ensembles.risk import certify_share
from strata.engine.ensembles.rules import SelectionRule, doubts, select_questions
from strata.engine.pipeline.config import Pipeline
from strata.engine.pipeline.fitted import Fitted
from strata.engine.pipeline.schema import RuleSection
from strata.engine.pipeline.scoreboard import Scoreboard
from strata.engine.types import Question


def choose_questions(pipeline: Pipeline, index: int, board: Scoreboard, fitted: Fitted) -> list[Question]:
    """The questions of a stage.

    Args:
        pipeline: with the stage's rule.
        index: the stage's number; the first takes all questions, in the file's order.
        board: what the stages before say.
        fitted: with the sample that a rule of risk goes by. Without one, the stage takes all questions, which
            is how the sample is found.
    """
    questions, rule = board.questions, pipeline.stages[index].rule
    if rule is None:
        return list(questions)
    before = board.answers(index - 1)
    places = select_questions(before, selection_rule(pipeline, index, rule, board, fitted))
    return [questions[place] for place in places]


def selection_rule(
    pipeline: Pipeline, index: int, rule: RuleSection, board: Scoreboard, fitted: Fitted
) -> SelectionRule:
    """A stage's rule; a risk becomes the share that keeps it."""
    if rule.risk is None:
        return SelectionRule(
            margin_below=rule.margin_below,
            probability_below=rule.probability_below,
            entropy_above=rule.entropy_above,
            least_sure=rule.least_sure,
            by=rule.by,
        )
    sample = fitted.samples.get(pipeline.stages[index].name)
    if sample is None:
        return SelectionRule(least_sure=1.0, by=rule.by)
    target = doubts(board.answers(index - 1), rule.by)
    replaces = pipeline.stages[index].replaces
    share, _ = certify_share(sample, target, risk=rule.risk, replaces=replaces)
    return SelectionRule(least_sure=share, by=rule.by)
