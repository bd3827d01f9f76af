"""Log-likelihoods of continuations, planned: one prefix tree of all pairs, swept group after group.

Not a `Job`: it scores pairs, which are no questions. See `Scorer.plan_continuations`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

from strata.engine.deadline import Deadline
from strata.engine.heads.continuation import IS_GREEDY
from strata.engine.jobs.decoder_job import DecoderJob

LogLikelihood = tuple[float, bool]
"""Sum of the continuation's log-probabilities in nats, and whether each token is the most probable one."""


@dataclass(kw_only=True, eq=False)
class ContinuationJob:
    """Pairs with their planned sweep, which is done once; `job` is None where there is no pair."""

    job: DecoderJob | None

    @property
    def num_tree_tokens(self) -> int:
        """Tokens that are computed: each of a shared prefix once."""
        return 0 if self.job is None else self.job.sweep.tree.num_tokens

    def groups(self) -> Iterator[dict[int, LogLikelihood]]:
        """Sweeps, and yields what each group completes, by the pair's number; each pair once.

        Raises:
            FloatingPointError: log-likelihoods that are not finite even in float32.
        """
        if self.job is None:
            return
        with closing(self.job.groups(Deadline())) as groups:
            for rows in groups:
                yield {
                    int(row.question.id): (float(row.scores[0]), bool(row.member_scores[IS_GREEDY][0]))
                    for row in rows
                }

    def in_order(self) -> list[LogLikelihood]:
        """All of them, in the order of the pairs; raises as `groups` does."""
        found = {number: value for group in self.groups() for number, value in group.items()}
        return [found[number] for number in range(len(found))]
