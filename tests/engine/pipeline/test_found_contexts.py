"""Which contexts a report may show: those of sources that were searched, whatever became of the others."""

import threading

from strata.engine.pipeline.contexts import ContextShelf
from strata.engine.types import InputError, Question

QUESTIONS = [Question(id=name, prompt="?", options=("a", "b")) for name in ("1", "2")]


def shelf_of(finders, folder):
    return ContextShelf(
        questions=QUESTIONS,
        finders=finders,
        settings={name: {} for name in finders},
        folder=folder,
        resumes=False,
    )


def test_only_what_was_found(tmp_path):
    begun = threading.Event()

    def fails(questions, stopped):
        raise InputError("no such index")

    def slow(questions, stopped):
        begun.set()
        stopped.wait()
        raise InputError("given up")

    finders = {
        "good": lambda questions, stopped: [f"about {question.id}" for question in questions],
        "bad": fails,
        "slow": slow,
        "never": fails,
    }
    (tmp_path / "contexts").mkdir()
    with shelf_of(finders, tmp_path / "contexts") as shelf:
        begun.wait()
        assert shelf.found() == {"good": ["about 1", "about 2"]}
    assert shelf.found() == {"good": ["about 1", "about 2"]}
