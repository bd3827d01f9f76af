"""Heads: from readouts or log-probabilities to scores, each formula spelled out again with plain loops."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from strata.engine.heads.classifier import binary_scores, contrast_scores, score_classifier
from strata.engine.heads.registry import choose_head, score_tokens
from strata.engine.members.ensemble import average_members
from strata.engine.tree.prefix_tree import build_prefix_tree
from strata.engine.tree.targets import TargetTable, build_target_table
from strata.engine.types import Branch, InputError, Prompt, Question, QuestionScores, Target
from strata.engine.weights.checkpoint import open_checkpoint

WIDTH = 4


def branch(
    option: int, ids: list[int], targets: list[tuple[int, int | None]], label="Yes", order=()
) -> Branch:
    found = tuple(Target(position=position, token_id=token) for position, token in targets)
    token_ids = np.array(ids, np.int32)
    return Branch(option=option, order=order, label=label, token_ids=token_ids, text="", targets=found)


def prompt(branches: list[Branch], options: tuple[str, ...] = ("a", "b"), name: str = "q") -> Prompt:
    question = Question(id=name, prompt="?", options=options)
    return Prompt(question=question, branches=tuple(branches))


def table_of(prompts: list[Prompt]) -> TargetTable:
    return build_target_table(
        prompts, build_prefix_tree([branch.token_ids for each in prompts for branch in each.branches])
    )


def yes_no_branches(option: int, ids: list[int], yes=(7,), no=(8,)) -> list[Branch]:
    """The two branches of an option, with labels of one token or of several."""
    branches = []
    for label, tokens in (("Yes", yes), ("No", no)):
        targets = [(len(ids) + index, token) for index, token in enumerate(tokens)]
        branches.append(branch(option, [*ids, *tokens[:-1]], targets, label))
    return branches


def test_the_table_finds_every_readout():
    # The trie: 1 2 3 | 4 5, 6; stream order is depth first, so 1 2 3 4 5 6.
    prompts = [
        prompt([branch(0, [1, 2, 3, 4, 5], [(3, 4), (5, 9)]), branch(1, [1, 2, 3, 6], [(3, 6), (4, 9)])])
    ]
    table = table_of(prompts)
    assert table.scored.tolist() == [2, 4, 5]
    assert table.branches.tolist() == [0, 0, 1, 1]
    assert table.rows.tolist() == [0, 1, 0, 2]
    assert table.token_ids.tolist() == [4, 9, 6, 9]
    assert table.num_branches == 2


def test_the_table_of_a_classifier_reads_the_token_itself():
    table = table_of([prompt([branch(0, [1, 2], [(1, None)]), branch(1, [1, 3, 4], [(2, None)])])])
    assert table.scored.tolist() == [1, 3]
    assert table.rows.tolist() == [0, 1]
    assert table.token_ids.tolist() == [-1, -1]


def test_a_branch_that_is_the_beginning_of_another_shares_its_readouts():
    table = table_of([prompt([branch(0, [1, 2], [(2, 9)]), branch(1, [1, 2, 3], [(2, 3), (3, 9)])])])
    assert table.scored.tolist() == [1, 2]
    assert table.rows.tolist() == [0, 0, 1]


NORMALIZATION = {
    "one token each at one readout": ([yes_no_branches(0, [1, 2]), yes_no_branches(1, [1, 3])], False),
    "two tokens of one label": ([yes_no_branches(0, [1, 2]), yes_no_branches(1, [1, 3], yes=(7, 6))], True),
    "two tokens of both": ([yes_no_branches(0, [1, 2], (7, 5), (8, 5))], True),
    "readouts at different tokens": (
        [[branch(0, [1, 2], [(2, 7)], "Yes"), branch(0, [1, 3], [(2, 8)], "No")]],
        True,
    ),
}


@pytest.mark.parametrize("case", NORMALIZATION)
def test_normalizers_are_left_out_only_where_they_cancel(case):
    branches, expected = NORMALIZATION[case]
    table = table_of([prompt([each for option in branches for each in option])])
    assert table.needs_normalization("yes-no") is expected
    assert table.needs_normalization("letters")
    assert table.needs_normalization("loglik")


def test_yes_no_is_the_difference_of_the_labels():
    prompts = [
        prompt(yes_no_branches(0, [1, 2]) + yes_no_branches(1, [1, 3], yes=(7, 6)), name="first"),
        prompt(yes_no_branches(0, [1, 4]) + yes_no_branches(1, [1, 5]), name="second"),
    ]
    logits = np.array([-1.0, -2.5, -0.5, -0.25, -3.0, -4.0, -1.0, -0.125, -9.0])
    first, second = score_tokens("yes-no", prompts, table_of(prompts), logits)
    np.testing.assert_allclose(first.scores, [1.5, -0.75 + 3.0])
    np.testing.assert_allclose(second.scores, [-3.0, 8.875])
    assert [first.question.id, second.question.id] == ["first", "second"]
    assert first.order == (1, 0)


def letters_prompt(orders: list[tuple[int, ...]]) -> Prompt:
    branches = [
        branch(option, [1, 10 + number], [(2, 20 + place)], label="ABC"[place], order=order)
        for number, order in enumerate(orders)
        for place, option in enumerate(order)
    ]
    return prompt(branches, options=("x", "yy", "zzz"))


def test_letters_in_one_order():
    prompts = [letters_prompt([(2, 0, 1)])]
    (row,) = score_tokens("letters", prompts, table_of(prompts), np.array([-3.0, -1.0, -2.0]))
    np.testing.assert_allclose(row.scores, [-1.0, -2.0, -3.0])
    np.testing.assert_allclose(row.probabilities, np.exp(row.scores) / np.exp(row.scores).sum())


def test_letters_are_unrotated_and_averaged():
    orders = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    prompts = [letters_prompt(orders)]
    logits = np.array([-1.0, -2.0, -3.0, -0.5, -4.0, -1.5, -6.0, -0.25, -2.25])
    (row,) = score_tokens("letters", prompts, table_of(prompts), logits)
    expected = np.zeros(3)
    for number, order in enumerate(orders):
        shown = np.exp(logits[3 * number : 3 * number + 3])
        for place, option in enumerate(order):
            expected[option] += shown[place] / shown.sum() / len(orders)
    np.testing.assert_allclose(row.probabilities, expected)
    np.testing.assert_allclose(row.scores, np.log(expected))


def test_loglik_is_the_sum_and_beside_it_the_mean_a_character():
    options = ("word", "two words", "")
    branches = [
        branch(0, [1], [(1, 5)]),
        branch(1, [1, 6, 7], [(1, 6), (2, 7), (3, 5)]),
        branch(2, [1], [(1, 9)]),
    ]
    prompts = [prompt(branches, options=options)]
    logits = np.array([-2.0, -1.0, -0.5, -3.0, -8.0])
    (row,) = score_tokens("loglik", prompts, table_of(prompts), logits)
    np.testing.assert_allclose(row.scores, [-2.0, -4.5, -8.0])
    np.testing.assert_allclose(row.member_scores["loglik_per_char"], [-0.5, -0.5, -8.0])


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
    table = table_of(prompts)
    weight = torch.linspace(-1, 2, WIDTH if head == "binary" else 2 * WIDTH)[None]
    rows = score_classifier(head, prompts, table, readouts, weight)
    # Stream order is by token id: 2, 3, 4, 8, 9 are readouts 0 to 4.
    for row, wanted in zip(rows, ([4, 0], [1, 3, 2]), strict=True):
        own = readouts[wanted]
        expected = (own @ weight[0]).tolist() if head == "binary" else contrast_by_hand(own, weight[0])
        np.testing.assert_allclose(row.scores, expected, rtol=1e-5)
        assert row.scores.dtype == np.float64


def member(scores: list[float]) -> list[QuestionScores]:
    from strata.engine.heads.probabilities import option_probabilities

    options = tuple("abc"[: len(scores)])
    question = Question(id="q", prompt="?", options=options)
    array = np.array(scores)
    return [QuestionScores(question=question, scores=array, probabilities=option_probabilities(array))]


def test_members_are_averaged_by_probability():
    scores = {"one": [2.0, 0.0, -1.0], "two": [-3.0, 4.0, 0.5]}
    (row,) = average_members({name: member(values) for name, values in scores.items()})
    expected = np.mean([np.exp(values) / np.exp(values).sum() for values in scores.values()], axis=0)
    np.testing.assert_allclose(row.probabilities, expected)
    np.testing.assert_allclose(row.scores, np.log(expected))
    for name, values in scores.items():
        np.testing.assert_array_equal(row.member_scores[name], values)


def test_a_single_member_is_itself():
    rows = member([1.0, 0.5])
    assert average_members({"base": rows}) is rows


def test_members_that_are_very_sure_are_averaged_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = average_members({"one": member([2000.0, 0.0]), "two": member([0.0, -2000.0])})
    assert np.isfinite(row.scores).all()


def checkpoint_with_score(folder, source, shape: tuple[int, ...] | None):
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    if shape is not None:
        tensors["score.weight"] = torch.ones(shape)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


CHOICES = [
    (None, "yes-no"),
    ((1, 32), "binary"),
    ((2, 32), "binary"),
    ((1, 64), "contrast"),
]


@pytest.mark.parametrize(("shape", "expected"), CHOICES, ids=str)
def test_auto_head(shape, expected, checkpoint, tmp_path):
    opened = checkpoint_with_score(tmp_path / "model", checkpoint("llama-gqa"), shape)
    assert choose_head("auto", opened, None) == expected
    assert choose_head("auto", opened, torch.ones(1, 64)) == "contrast", "the adapter's score goes first"
    for head in ("yes-no", "letters", "loglik"):
        assert choose_head(head, opened, None) == head


REFUSALS = [
    ("binary", None, "no score.weight"),
    ("contrast", None, "no score.weight"),
    ("binary", (1, 64), r"\[1, 64\]; expected \[1, 32\] or \[2, 32\]"),
    ("binary", (3, 32), r"\[3, 32\]; expected \[1, 32\] or \[2, 32\]"),
    ("contrast", (1, 32), r"\[1, 32\]; expected \[1, 64\]"),
    ("contrast", (2, 64), r"\[2, 64\]; expected \[1, 64\]"),
]


@pytest.mark.parametrize(("head", "shape", "message"), REFUSALS, ids=str)
def test_heads_that_do_not_fit_the_score_are_refused(head, shape, message, checkpoint, tmp_path):
    opened = checkpoint_with_score(tmp_path / "model", checkpoint("llama-gqa"), shape)
    with pytest.raises(InputError, match=message) as raised:
        choose_head(head, opened, None)
    assert f"--head {head}" in str(raised.value)


@pytest.mark.parametrize("shape", [(3, 32), (2, 64), (1, 48)], ids=str)
def test_auto_refuses_a_score_that_fits_no_head(shape, checkpoint, tmp_path):
    opened = checkpoint_with_score(tmp_path / "model", checkpoint("llama-gqa"), shape)
    with pytest.raises(InputError, match=r"score\.weight"):
        choose_head("auto", opened, None)
