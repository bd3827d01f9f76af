"""What is learned from: order and shuffling as pure functions, labels, and the data that is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strata.engine.results.tables import write_scores
from strata.engine.types import InputError, Question, QuestionScores, RunWarnings
from strata.training.data.batch_order import BatchOrder, hold_out, shuffle_options, step_seed
from strata.training.data.passages import block_example, cut_passage
from strata.training.data.training_set import check_questions, read_training_set
from strata.training.loop.processes import OneProcess, share_of

from ..tiny_reader import TinyReader, planted_questions, tiny_config, write_rows


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 3), (8, 4), (3, 5), (1, 1)])
def test_every_epoch_shows_every_example_once(num_examples, batch_size):
    order = BatchOrder(num_examples=num_examples, batch_size=batch_size, seed=7)
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.batch(step) for step in steps]
        assert {number for number, _ in batches} == {epoch}
        assert sorted(index for _, batch in batches for index in batch) == list(range(num_examples))
        assert max(len(batch) for _, batch in batches) <= batch_size


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else():
    order = BatchOrder(num_examples=50, batch_size=50, seed=1)
    again = BatchOrder(num_examples=50, batch_size=50, seed=1)
    assert [order.batch(step) for step in (2, 0, 1)] == [again.batch(step) for step in (2, 0, 1)]
    assert order.batch(0)[1] != order.batch(1)[1]
    assert order.batch(0)[1] != BatchOrder(num_examples=50, batch_size=50, seed=2).batch(0)[1]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "expected"),
    [(1.0, None, 30), (0.1, None, 3), (0.001, None, 1), (2.5, None, 75), (9.0, 4, 4)],
)
def test_number_of_steps(epochs, max_steps, expected):
    order = BatchOrder(num_examples=119, batch_size=4, seed=0)
    assert order.count_steps(epochs=epochs, max_steps=max_steps) == expected


def test_seeds_of_steps_and_processes_differ():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(2)}
    assert len(seeds) == 120
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_shuffled_options_take_answer_and_labels_along():
    question = Question(id="1", prompt="?", options=("a", "b", "c", "d"), answer=2)
    labels = np.array([0.1, 0.2, 0.6, 0.1])
    label_of = dict(zip(question.options, labels, strict=True))
    seen = set()
    for epoch in range(40):
        shuffled, moved = shuffle_options(question, labels, seed=3, epoch=epoch, index=5)
        assert shuffled.options[shuffled.answer] == "c"
        assert [label_of[option] for option in shuffled.options] == moved.tolist()
        seen.add(shuffled.options)
    assert len(seen) > 10
    orders = [
        shuffle_options(question, labels, seed=3, epoch=0, index=index)[0].options for index in range(9)
    ]
    assert len(set(orders)) > 1


def test_held_out_examples_are_a_share_and_no_others():
    kept, held_out = hold_out(40, 0.25, seed=1)
    assert (len(kept), len(held_out)) == (30, 10)
    assert sorted(kept + held_out) == list(range(40))
    assert hold_out(40, 0.25, seed=1) == (kept, held_out)
    assert hold_out(40, 0.25, seed=2) != (kept, held_out)
    assert [len(part) for part in hold_out(3, 0.999, seed=0)] == [1, 2]
    assert [len(part) for part in hold_out(3, 0.001, seed=0)] == [2, 1]


def test_processes_share_a_batch():
    processes = [replace(OneProcess(), num_processes=3, process_index=rank) for rank in range(3)]
    shares = [share_of([5, 6, 7, 8], one) for one in processes]
    assert shares == [[5, 8], [6], [7]]


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


REFUSED = {
    "no answer column": (["id,prompt,A,B", "1,Q,x,y"], {}, ["no answers", "'answer'"]),
    "an answer missing": (
        ["id,prompt,A,B,answer", "1,Q,x,y,A", "2,Q,x,y,"],
        {},
        ["row 2", "'answer'", "'2'"],
    ),
    "an empty option": (["id,prompt,A,B,C,answer", "1,Q,x,y,z,B", "2,Q,x,,z,A"], {}, ["row 2", "'B'", "'2'"]),
    "one class": (
        ["id,prompt,A,B,answer", "1,Q,x,y,B", "2,Q,u,v,B"],
        {"shuffle_options": False},
        ["one class", "B"],
    ),
    "one question to split": (["id,prompt,A,B,answer", "1,Q,x,y,B"], {"valid_share": 0.5}, ["--valid-share"]),
    "no column of contexts": (
        ["id,prompt,A,B,answer", "1,Q,x,y,B"],
        {"context_column": "wiki"},
        ["--context-column"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_questions_are_refused_by_name(case, tmp_path):
    lines, changes, words = REFUSED[case]
    questions = write_csv(tmp_path / "train.csv", *lines)
    with pytest.raises(InputError) as refusal:
        read_training_set(tiny_config(tmp_path, questions=questions, **changes), RunWarnings())
    for word in ["train.csv", *words]:
        assert word in str(refusal.value)


def test_one_class_is_no_matter_when_options_are_shuffled(tmp_path):
    questions = write_csv(tmp_path / "train.csv", "id,prompt,A,B,answer", "1,Q,x,y,B", "2,Q,u,v,B")
    assert len(read_training_set(tiny_config(tmp_path, questions=questions), RunWarnings()).train) == 2


def test_a_single_option_is_refused():
    question = Question(id="7", prompt="?", options=("alone",), answer=0, row=4)
    with pytest.raises(InputError, match=r"row 4: 1 option.*'7'"):
        check_questions([question], Path("train.parquet"))


def test_a_validation_file_needs_answers(tmp_path):
    valid = write_csv(tmp_path / "valid.csv", "id,prompt,A,B", "1,Q,x,y")
    with pytest.raises(InputError, match=r"valid\.csv: no answers"):
        read_training_set(tiny_config(tmp_path, valid=valid), RunWarnings())


def test_ids_that_are_in_both_files_are_told(tmp_path):
    rows = planted_questions(40)
    valid = write_rows(tmp_path / "valid.jsonl", [*planted_questions(3, prefix="v"), *rows[5:7]])
    warnings = RunWarnings()
    data = read_training_set(tiny_config(tmp_path, valid=valid), warnings)
    assert len(data.valid) == 5
    (message,) = warnings.messages
    assert "2 id(s)" in message
    assert "q5, q6" in message


def read_all(config, *, epoch):
    source = read_training_set(config, RunWarnings()).train
    return source.read(TinyReader(config), range(len(source)), epoch=epoch)


def test_examples_are_one_hot_and_follow_the_shuffle(tmp_path):
    config = tiny_config(tmp_path)
    plain, shuffled = read_all(config, epoch=None), read_all(config, epoch=1)
    for before, after in zip(plain, shuffled, strict=True):
        question = after.prompt.question
        assert after.labels.tolist() == np.eye(len(question.options))[question.answer].tolist()
        original = before.prompt.question
        assert question.options[question.answer] == original.options[original.answer]
    orders = (
        [example.prompt.question.options for example in plain],
        [example.prompt.question.options for example in shuffled],
    )
    assert orders[0] != orders[1]
    assert orders[1] != [example.prompt.question.options for example in read_all(config, epoch=2)]
    fixed = replace(config, shuffle_options=False)
    assert [example.prompt.question.options for example in read_all(fixed, epoch=1)] == orders[0]


def write_teacher(path: Path, rows: list[dict], scores: list[list[float]]) -> Path:
    found = []
    for row, scores_O in zip(rows, scores, strict=True):
        exponentials = np.exp(scores_O)
        question = Question(id=row["id"], prompt="", options=("",) * len(scores_O))
        found.append(
            QuestionScores(
                question=question, scores=np.array(scores_O), probabilities=exponentials / exponentials.sum()
            )
        )
    write_scores(path, found)
    return path


def test_soft_labels_are_softmax_of_scores_over_temperature_mixed_with_answers(tmp_path):
    rows = planted_questions(6)
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=len(row["options"])).tolist() for row in rows]
    # In another order: labels go by id.
    teacher = write_teacher(tmp_path / "scores.parquet", rows[::-1], scores[::-1])
    config = tiny_config(
        tmp_path,
        questions=write_rows(tmp_path / "six.jsonl", rows),
        soft_labels=teacher,
        soft_weight=0.3,
        soft_temperature=2.0,
    )
    for row, scores_O, example in zip(rows, scores, read_all(config, epoch=None), strict=True):
        softmax = np.exp(np.array(scores_O) / 2) / np.exp(np.array(scores_O) / 2).sum()
        expected = 0.7 * np.eye(len(scores_O))[row["answer"]] + 0.3 * softmax
        np.testing.assert_allclose(example.labels, expected, rtol=1e-12)


def test_questions_without_answers_learn_from_soft_labels_alone(tmp_path):
    rows = [row | {"answer": None} for row in planted_questions(3)]
    scores = [[float(place) for place in range(len(row["options"]))] for row in rows]
    teacher = write_teacher(tmp_path / "scores.parquet", rows, scores)
    questions = write_rows(tmp_path / "unanswered.jsonl", rows)
    config = tiny_config(tmp_path, questions=questions, soft_labels=teacher, soft_weight=1.0)
    assert [int(example.labels.argmax()) for example in read_all(config, epoch=None)] == [
        len(scores_O) - 1 for scores_O in scores
    ]
    with pytest.raises(InputError, match="no answers"):
        read_training_set(replace(config, soft_weight=0.9), RunWarnings())


def teacher_refusals(rows):
    plain = [[0.5] * len(row["options"]) for row in rows]
    return {
        "a question missing": (rows[1:], plain[1:], rows[0]["id"]),
        "another number of options": (rows, [[*plain[0], 1.0], *plain[1:]], rows[0]["id"]),
        "constant": (rows, plain, "same probability"),
        "not a number": (rows, [*plain[:-1], [float("nan")] * len(plain[-1])], rows[-1]["id"]),
    }


@pytest.mark.parametrize(
    "case", ["a question missing", "another number of options", "constant", "not a number"]
)
def test_soft_labels_that_tell_nothing_are_refused(case, tmp_path):
    rows = planted_questions(4)
    own_rows, scores, word = teacher_refusals(rows)[case]
    config = tiny_config(
        tmp_path,
        questions=write_rows(tmp_path / "four.jsonl", rows),
        soft_labels=write_teacher(tmp_path / "scores.parquet", own_rows, scores),
        soft_weight=1.0,
    )
    with pytest.raises(InputError, match="--soft-labels") as refusal:
        read_training_set(config, RunWarnings())
    assert word in str(refusal.value)


@pytest.mark.parametrize("num_tokens", [2, 3, 9, 10, 11, 21, 100])
def test_every_token_of_a_passage_but_the_first_is_predicted_once(num_tokens):
    ids = np.arange(100, 100 + num_tokens, dtype=np.int32)
    blocks = cut_passage(ids, 10)
    sizes = [len(block) - 1 for block in blocks]
    assert max(sizes) <= 10
    assert max(sizes) - min(sizes) <= 1
    predicted = []
    for number, block in enumerate(blocks):
        (branch,) = block_example(number, block).prompt.branches
        assert len(branch.token_ids) == len(block) - 1
        for target in branch.targets:
            before = branch.token_ids[target.readout_position]
            assert target.token_id == before + 1, "predicted from the token before it"
            predicted.append(target.token_id)
    assert predicted == ids[1:].tolist()


def test_a_passage_of_one_token_has_nothing_to_predict():
    assert cut_passage(np.array([5], dtype=np.int32), 10) == []
    assert cut_passage(np.array([], dtype=np.int32), 10) == []


def test_fingerprints_tell_data_apart(tmp_path):
    rows = planted_questions(4)
    changes = [
        rows,
        rows[::-1],
        [rows[0] | {"question": "Who?"}, *rows[1:]],
        [rows[0] | {"context": "c"}, *rows[1:]],
        [rows[0] | {"answer": (rows[0]["answer"] + 1) % len(rows[0]["options"])}, *rows[1:]],
    ]
    prints = set()
    for number, rows in enumerate(changes):
        config = tiny_config(tmp_path, questions=write_rows(tmp_path / f"{number}.jsonl", rows))
        prints.add(read_training_set(config, RunWarnings()).train.fingerprint())
    assert len(prints) == len(changes)
