"""The demo's corpus: what its files hold, that splits are apart, and that wrong tables are refused."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from strata.engine.questions.question_file import read_questions
from strata.engine.types import InputError, RunWarnings
from strata.retrieval.corpus.pages import read_pages
from strata.training.demo_corpus.build import BuildConfig, build_corpus, write_questions
from strata.training.demo_corpus.entities import FOLDER, facts_of, load_entities, load_kinds
from strata.training.demo_corpus.invented import invent_scenes, make_inventor
from strata.training.demo_corpus.passages import write_passage
from strata.training.demo_corpus.questions import as_number, write_question
from strata.training.demo_corpus.splits import SPLITS, split_entities

KINDS = load_kinds()
ENTITIES = load_entities(KINDS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    build_corpus(BuildConfig(out=out, synthetic=300, reading=20, without_context=0.2))
    return out


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_same_seed_gives_the_same_files(corpus: Path, tmp_path: Path) -> None:
    build_corpus(BuildConfig(out=tmp_path, synthetic=300, reading=20, without_context=0.2))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "passages.jsonl",
        "reading.jsonl",
        "synthetic.csv",
        "test.csv",
        "train.csv",
        "train_passages.jsonl",
        "valid.csv",
    ]
    assert all((tmp_path / name).read_bytes() == (corpus / name).read_bytes() for name in names)


def test_another_seed_gives_other_files(corpus: Path, tmp_path: Path) -> None:
    build_corpus(BuildConfig(out=tmp_path, seed=1))
    assert (tmp_path / "test.csv").read_bytes() != (corpus / "test.csv").read_bytes()


def test_every_thing_has_a_page_that_states_all_its_facts(corpus: Path) -> None:
    pages = {page.title.casefold(): page.text for page in read_pages([corpus / "passages.jsonl"])}
    assert len(pages) == len(ENTITIES)
    missing = [
        (entity.name, value)
        for entity in ENTITIES
        for value in entity.values.values()
        if value not in pages[entity.name.casefold()]
    ]
    assert missing == []


@pytest.mark.parametrize("split", SPLITS)
def test_questions_have_five_options_and_the_right_one_is_the_fact(corpus: Path, split: str) -> None:
    warnings = RunWarnings()
    questions = read_questions(corpus / f"{split}.csv", warnings=warnings)
    assert warnings.lines() == []
    things = split_entities(ENTITIES)[split]
    # There are but three parts of the sky: too few for five options.
    facts = [value for entity in things for name, value in entity.values.items() if name != "hemisphere"]
    assert len(questions) == len(facts)
    for question in questions:
        assert question.answer is not None
        assert len({option.casefold() for option in question.options}) == 5
        assert question.options[question.answer] in facts


def test_held_out_things_are_asked_about_in_their_split_only(corpus: Path) -> None:
    splits = split_entities(ENTITIES)
    assert sum(len(part) for part in splits.values()) == len(ENTITIES)
    for split in SPLITS:
        owners = {entity.name for entity in splits[split]}
        known = splits["train"] if split == "train" else ENTITIES
        asked = write_questions(splits[split], known, KINDS, seed=0)
        assert {question.subject for question in asked} == owners
        prompts = [row["prompt"] for row in read_rows(corpus / f"{split}.csv")]
        assert prompts == [question.prompt for question in asked]


def test_training_files_hold_no_page_and_no_value_of_held_out_things(corpus: Path) -> None:
    train = split_entities(ENTITIES)["train"]
    pages = [page.title.casefold() for page in read_pages([corpus / "train_passages.jsonl"])]
    assert pages == [entity.name.casefold() for entity in train]
    values = {value for entity in train for value in entity.values.values()}
    options = {row[letter] for row in read_rows(corpus / "train.csv") for letter in "ABCDE"}
    assert options <= values


def test_every_kind_is_in_every_split() -> None:
    for part in split_entities(ENTITIES).values():
        assert {entity.kind for entity in part} == set(KINDS)


def test_synthetic_answers_are_in_their_context(corpus: Path) -> None:
    rows = read_rows(corpus / "synthetic.csv")
    assert len(rows) == 300
    without = [row for row in rows if not row["context"]]
    assert 0 < len(without) < 150
    missing = [row["id"] for row in rows if row["context"] and row[row["answer"]] not in row["context"]]
    assert missing == []


def test_synthetic_contexts_hold_wrong_options_too(corpus: Path) -> None:
    rows = [row for row in read_rows(corpus / "synthetic.csv") if row["context"]]
    wrong = [row[letter] in row["context"] for row in rows for letter in "ABCDE" if letter != row["answer"]]
    assert sum(wrong) > len(rows) / 2


def test_reading_texts_end_with_a_right_answer(corpus: Path) -> None:
    lines = (corpus / "reading.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 20
    for line in lines:
        context, _, answer = json.loads(line)["text"].rpartition("\nAnswer: ")
        assert answer in context


def test_scenes_differ_and_a_seed_fixes_them() -> None:
    inventor = make_inventor(KINDS, split_entities(ENTITIES)["train"])
    scenes = list(islice(invent_scenes(inventor, 3), 50))
    assert scenes == list(islice(invent_scenes(inventor, 3), 50))
    assert len({scene.passages for scene in scenes}) == 50


def test_inventor_knows_nothing_of_held_out_things() -> None:
    splits = split_entities(ENTITIES)
    inventor = make_inventor(KINDS, splits["train"])
    known = {value for pool in inventor.pools.values() for value in pool}
    assert known == {value for entity in splits["train"] for value in entity.values.values()}


def test_values_of_the_same_passage_are_wrong_options_where_the_type_fits() -> None:
    newton = next(entity for entity in ENTITIES if entity.name == "Isaac Newton")
    others = [entity for entity in ENTITIES if entity is not newton]
    born = next(fact for fact in facts_of(newton, KINDS["scientist"]) if fact.attribute.name == "born")
    question = write_question(born, others, Random(0))
    assert question is not None
    assert newton.values["died"] in question.options
    assert question.options[question.answer] == newton.values["born"]


def test_no_question_without_four_wrong_options() -> None:
    newton = next(entity for entity in ENTITIES if entity.name == "Isaac Newton")
    field = facts_of(newton, KINDS["scientist"])[0]
    assert write_question(field, ENTITIES[:3], Random(0)) is None


def test_a_passage_may_state_fewer_facts() -> None:
    entity = ENTITIES[0]
    text = write_passage(entity, KINDS[entity.kind], Random(0), max_facts=2)
    assert sum(value in text for value in entity.values.values()) == 2


@pytest.mark.parametrize(
    ("text", "number"), [("1875", 1875.0), ("0.5 meters", 0.5), ("a harp", None), ("", None)]
)
def test_numbers_are_read_from_values(text: str, number: float | None) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [["name", "color"], *rows[1:]], "columns"),
        (lambda rows: [rows[0], rows[1], rows[1]], "occurs twice"),
        (lambda rows: [rows[0], ["only a name"]], "expected 6 cells"),
        (lambda rows: [rows[0], ["", *rows[1][1:]]], "expected a name"),
        (lambda rows: [rows[0], [*rows[1][:2], "", "", "", ""]], "two values or more"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, change, message: str) -> None:
    with (FOLDER / "facts" / "mineral.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    with (tmp_path / "mineral.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(change(rows))
    with pytest.raises(InputError, match=message):
        load_entities({"mineral": KINDS["mineral"]}, tmp_path)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--synthetic"):
        BuildConfig(out=tmp_path, synthetic=-1)
    with pytest.raises(InputError, match="--without-context"):
        BuildConfig(out=tmp_path, without_context=1.5)
