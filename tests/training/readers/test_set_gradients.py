"""Training on sets of options: gradients against transformers + PEFT under a dense mask and position ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from strata.engine.types import Branch, InputError, Question
from strata.training.readers.resident_reader import open_resident_reader
from strata.training.readers.streamed_reader import open_streamed_reader
from strata.training.types import Example

from ...engine.debias.set_reference import dense_mask, places
from .test_gradients import (
    TOLERANCE,
    Oracle,
    assert_same_gradients,
    close,
    gradients,
    ids_of,
    make_examples,
    randomize,
    settings,
)


class SetOracle(Oracle):
    """Task choice, whose branches have siblings."""

    def scores(self, example: Example) -> torch.Tensor:
        return torch.stack([self.score_of(branch) for branch in example.prompt.branches])

    def score_of(self, branch: Branch) -> torch.Tensor:
        assert branch.siblings
        positions, parts = places(len(branch.token_ids), [list(span) for span in branch.siblings])
        base = self.model.base_model.model
        states = base.model(
            input_ids=ids_of(branch),
            attention_mask=dense_mask(positions, parts, None),
            position_ids=torch.tensor([positions]),
        ).last_hidden_state
        return base.score(states[0, -1])[0]


@pytest.mark.parametrize("open_reader", [open_resident_reader, open_streamed_reader])
def test_gradients_under_a_dense_mask(open_reader, checkpoint, questions, tmp_path):
    model = checkpoint("llama-gqa")
    reader = open_reader(settings(model, tmp_path, "choice", debias="set"))
    randomize(reader)
    examples = make_examples(reader, questions, "choice")
    reader.save(tmp_path / "adapter")
    loss = reader.accumulate_gradients(examples, seed=0)
    oracle = SetOracle(model, tmp_path / "adapter", "choice")
    expected = oracle.loss(examples, 0.0)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=TOLERANCE)
    assert_same_gradients(gradients(reader), oracle.gradients())
    close(reader)


def shuffled(examples: Sequence[Example], reader) -> list[Example]:
    found = []
    for example in examples:
        order = np.random.default_rng(1).permutation(len(example.labels))
        asked: Question = example.prompt.question
        asked = replace(asked, options=tuple(asked.options[index] for index in order))
        (prompt,) = reader.render([asked])
        found.append(Example(prompt=prompt, labels=example.labels[order]))
    return found


@pytest.mark.parametrize("task", ["binary", "contrast"])
def test_no_order_of_the_options_changes_what_is_learned(task, checkpoint, questions, tmp_path):
    found = []
    for turns in (False, True):
        reader = open_resident_reader(settings(checkpoint("mistral"), tmp_path, task, debias="set"))
        randomize(reader)
        examples = make_examples(reader, questions, task)
        reader.accumulate_gradients(shuffled(examples, reader) if turns else examples, seed=0)
        found.append(gradients(reader))
    assert_same_gradients(*found)


@pytest.mark.parametrize("task", ["letters", "multiple-choice", "classify"])
def test_tasks_that_do_not_score_an_option_by_its_text_are_refused(task, tmp_path):
    with pytest.raises(InputError, match=f"--debias set: task {task}"):
        settings(tmp_path, tmp_path, task, debias="set").check()
