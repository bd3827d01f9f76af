"""Changes of a question file, or of how a run is cut, that no score may notice: the whole pipeline.

In float32 rounding is all that may differ: other shapes of GEMMs sum in another order. In int8 the columns
that are kept apart depend on the micro-batch, so that scores may move, by less than int8 itself moves them:
the reference is the float32 run, and a changed run's distance from the unchanged one is bounded by theirs.
"""

from __future__ import annotations

import numpy as np
import pytest

from .changed_questions import CHANGES, ROWS, make_adapter, scores_of, with_a_twin_option

ROUNDING = 1e-5
MODELS = {
    "loglik": ("llama-gqa", {"head": "loglik"}),
    "yes-no": ("gemma3", {"head": "yes-no"}),
    "letters": ("qwen3", {"head": "letters", "debias": "rotate"}),
    "experts": ("mixtral", {"head": "loglik"}),
    "adapters": ("llama-gqa", {"head": "loglik", "adapter": (1, 2)}),
}
LAYOUTS = [
    {"micro_batch_tokens": 13},
    {"micro_batch_tokens": 100_000, "num_groups": 1},
    {"micro_batch_tokens": 64, "num_groups": 3, "resident_layers": 0, "hidden_store": "disk"},
    {"micro_batch_tokens": 40, "devices": "cpu,cpu", "num_groups": 2},
]


@pytest.fixture(scope="module")
def settings_of(checkpoint, tmp_path_factory):
    """`settings_of(name)` -> the settings of a row of MODELS, its adapters made on first use."""
    made: dict[str, dict] = {}

    def settings(name: str) -> dict:
        if name not in made:
            family, given = MODELS[name]
            model = checkpoint(family)
            adapters = [
                make_adapter(model, tmp_path_factory.mktemp(f"adapter{seed}"), seed)
                for seed in given.get("adapter", ())
            ]
            made[name] = given | {"model": model, "adapter": tuple(adapters)}
        return made[name]

    return settings


@pytest.fixture(scope="module")
def unchanged() -> dict[str, dict[str, np.ndarray]]:
    """Scores in float32 of the questions as they are, by model: filled by `exact_of`."""
    return {}


@pytest.fixture
def exact_of(unchanged, settings_of, score, tmp_path):
    """`exact_of(name)` -> scores by question id, computed once a model."""

    def exact(name: str) -> dict[str, np.ndarray]:
        if name not in unchanged:
            unchanged[name] = scores_of(score, tmp_path, ROWS, **settings_of(name))
        return unchanged[name]

    return exact


def farthest(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """The largest difference over the questions of the left."""
    return max(float(np.abs(scores - right[name]).max()) for name, scores in left.items())


def changes_averages(name: str, change: object) -> bool:
    """Members' probabilities are averaged, and another option takes a share of each: the twins are equal."""
    return name == "adapters" and change is with_a_twin_option


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_changed_questions_in_float32(name, change, settings_of, exact_of, score, tmp_path):
    if name == "letters" and change is with_a_twin_option:
        pytest.skip("another option is another prompt")
    settings, expected = settings_of(name), exact_of(name)
    assert max(np.ptp(scores) for scores in expected.values()) > 0.1
    found = change(score, tmp_path, **settings)
    if not changes_averages(name, change):
        assert farthest(found, expected) <= ROUNDING


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
@pytest.mark.parametrize("name", ["loglik", "adapters"])
def test_changed_layouts_in_float32(name, layout, settings_of, exact_of, score, tmp_path):
    settings, expected = settings_of(name), exact_of(name)
    assert farthest(scores_of(score, tmp_path, ROWS, **settings, **layout), expected) <= ROUNDING


@pytest.mark.parametrize("name", ["loglik", "adapters"])
def test_changes_in_int8(name, settings_of, exact_of, score, tmp_path):
    exact = exact_of(name)
    settings = settings_of(name) | {"dtype": "int8", "int8_check_questions": 0}
    expected = scores_of(score, tmp_path, ROWS, **settings)
    moved_by_int8 = farthest(expected, exact)
    assert moved_by_int8 > ROUNDING
    for change in CHANGES:
        found = change(score, tmp_path, **settings)
        if not changes_averages(name, change):
            assert farthest(found, expected) <= moved_by_int8, change.__name__
    for layout in LAYOUTS:
        found = scores_of(score, tmp_path, ROWS, **settings, **layout)
        # What is an outlier depends on who shares a micro-batch: two roundings, each so far from exact.
        assert farthest(found, expected) <= 2 * moved_by_int8, layout
