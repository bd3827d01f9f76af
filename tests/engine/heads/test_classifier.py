"""Classifier heads: from hidden states to scores, each formula spelled out again with plain loops."""

import numpy as np
import pytest
import torch

from strata.engine.heads.classifier import binary_scores, contrast_scores
from strata.engine.heads.registry import HEADS

from .scored_prompts import branch, prompt, score_by

WIDTH = 4


@pytest.fixture
def readouts() -> torch.Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))


def contrast_by_hand(r_OD: torch.Tensor, weight: torch.Tensor) -> list[float]:
    """w[:D] . r_i + w[D:] . mean over j != i of r_j"""
    scores = []
    for own in range(len(r_OD)):
        others = [r_OD[other].numpy() for other in range(len(r_OD)) if other != own]
        mean = np.mean(others, axis=0)
        scores.append(float(weight[:WIDTH].numpy() @ r_OD[own].numpy() + weight[WIDTH:].numpy() @ mean))
    return scores


@pytest.mark.parametrize("num_options", [2, 3, 5])
def test_contrast_formula(num_options, readouts):
    r_OD, weight = readouts[:num_options].double(), torch.linspace(-1, 2, 2 * WIDTH).double()
    np.testing.assert_allclose(contrast_scores(r_OD, weight).numpy(), contrast_by_hand(r_OD, weight))


def test_binary_formula_with_one_and_with_two_labels(readouts):
    weight = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 2.0]])
    expected = (readouts * weight[0]).sum(dim=1)
    torch.testing.assert_close(binary_scores(readouts, weight[:1]), expected)
    torch.testing.assert_close(
        binary_scores(readouts, weight), (readouts * (weight[1] - weight[0])).sum(dim=1)
    )


@pytest.mark.parametrize("head", ["binary", "contrast"])
def test_classifiers_take_each_questions_own_readouts(head, readouts):
    prompts = [
        prompt([branch(0, [1, 9], [(1, None)]), branch(1, [1, 2], [(1, None)])], name="first"),
        prompt(
            [branch(option, [1, ids], [(1, None)]) for option, ids in enumerate((3, 8, 4))],
            options=("a", "b", "c"),
            name="second",
        ),
    ]
    weight = torch.linspace(-1, 2, WIDTH if head == "binary" else 2 * WIDTH)[None]
    rows = score_by(HEADS[head], prompts, readouts=readouts, weight=weight)
    # Stream order is by token id: 2, 3, 4, 8, 9 are readouts 0 to 4.
    for row, wanted in zip(rows, ([4, 0], [1, 3, 2]), strict=True):
        own = readouts[wanted]
        expected = (own @ weight[0]).tolist() if head == "binary" else contrast_by_hand(own, weight[0])
        np.testing.assert_allclose(row.scores, expected, rtol=1e-5)
        assert row.scores.dtype == np.float64


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_bias_is_part_of_the_logit(num_labels, readouts):
    prompts = [prompt([branch(0, [1, 2], [(1, None)]), branch(1, [1, 3], [(1, None)])])]
    weight, bias = torch.linspace(-1, 2, num_labels * WIDTH).view(num_labels, WIDTH), torch.tensor([0.5, 3.0])
    (row,) = score_by(HEADS["binary"], prompts, readouts=readouts, weight=weight, bias=bias[:num_labels])
    logits = readouts[:2] @ weight.T + bias[:num_labels]
    expected = logits[:, 0] if num_labels == 1 else logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(row.scores, expected, rtol=1e-5)


def test_classify_finds_a_texts_labels_by_name(readouts):
    names = ("sea", "hill", "moon")
    prompts = [
        prompt([branch(0, [1, 9], [(1, None)])], options=names, name="all"),
        prompt([branch(0, [1, 2], [(1, None)])], options=("moon", "sea"), name="some"),
    ]
    weight, bias = torch.linspace(-1, 2, 3 * WIDTH).view(3, WIDTH), torch.tensor([1.0, -2.0, 3.0])
    rows = score_by(HEADS["classify"], prompts, readouts=readouts[:2], weight=weight, bias=bias, names=names)
    logits = (readouts[:2] @ weight.T + bias).numpy()
    # Stream order is by token id: the second text's token comes first.
    np.testing.assert_allclose(rows[0].scores, logits[1], rtol=1e-5)
    np.testing.assert_allclose(rows[1].scores, logits[0][[2, 0]], rtol=1e-5)
    assert rows[1].probabilities.sum() == pytest.approx(1)
