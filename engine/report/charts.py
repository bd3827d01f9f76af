"""What the page's charts show, as figures of plotly: distributions, reliability, positions, agreement.

A chart is a mapping with `id`, `title`, `note` (a sentence below it), `data` and `layout`, both as plotly
takes them. Colours are names of roles (`good`, `bad`, `main`, ...), which the page replaces by those of its
light or dark theme.
Legend: Q questions, O options, M members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from strata.engine.calibration.position_bias import PositionBias, measure_position_bias
from strata.engine.calibration.reliability import describe_reliability
from strata.engine.ensembles.agreement import measure_agreement
from strata.engine.report.members import Rows
from strata.engine.types import QuestionScores

Chart = dict[str, Any]
NUM_BINS = 20
MAX_NAMED_LABELS = 40
"""More labels than these would not be legible on an axis."""


def answer_charts(
    scores: Sequence[QuestionScores], members: Mapping[str, Rows], before: Mapping[str, Rows]
) -> list[Chart]:
    """All charts that these answers have something to show for.

    Args:
        scores: the run's.
        members: what each member said.
        before: what members that were debiased said before.
    """
    if not scores:
        return []
    charts = [margin_chart(scores), probability_chart(scores)]
    if any(row.question.answer is not None for row in scores):
        charts.append(reliability_chart(scores))
    charts.append(position_chart(scores, members, before))
    if len(members) > 1:
        charts.append(agreement_chart(members))
    return charts


def verdict(row: QuestionScores) -> str:
    """Whether the best option is the answer: `right`, `wrong` or `unknown`."""
    if row.question.answer is None:
        return "unknown"
    return "right" if row.order[0] == row.question.answer else "wrong"


def margin_chart(scores: Sequence[QuestionScores]) -> Chart:
    """How sure the run is, right and wrong answers apart; bins [k / 20, (k + 1) / 20]."""
    verdicts = np.array([verdict(row) for row in scores])
    margins = np.array([row.margin if np.isfinite(row.margin) else 1.0 for row in scores])
    colours = {"right": "good", "wrong": "bad", "unknown": "main"}
    data = [
        _bars(name, margins[verdicts == name], colours[name]) for name in colours if (verdicts == name).any()
    ]
    return {
        "id": "margins",
        "title": "Margins",
        "note": "Probability of the best option minus that of the second. Click a bar to see its questions.",
        "data": data,
        "layout": {
            "barmode": "stack",
            "bargap": 0.06,
            "xaxis": {"title": {"text": "margin"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "questions"}},
        },
    }


def probability_chart(scores: Sequence[QuestionScores]) -> Chart:
    """The probabilities of options: of right ones beside wrong ones, as shares of either."""
    known = [row for row in scores if row.question.answer is not None]
    right = np.array(
        [row.probabilities[row.question.answer] for row in known if row.question.answer is not None]
    )
    if known:
        others = np.concatenate(
            [
                np.delete(row.probabilities, row.question.answer)
                for row in known
                if row.question.answer is not None
            ]
        )
        data = [
            _bars("right options", right, "good", as_share=True),
            _bars("other options", others, "soft", as_share=True),
        ]
    else:
        data = [
            _bars("options", np.concatenate([row.probabilities for row in scores]), "main", as_share=True)
        ]
    return {
        "id": "probabilities",
        "title": "Probabilities of options",
        "note": "Of all right options, and of all others, the share that is given such a probability.",
        "data": data,
        "layout": {
            "barmode": "group",
            "bargap": 0.06,
            "xaxis": {"title": {"text": "probability"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "share"}, "tickformat": ".0%"},
        },
    }


def reliability_chart(scores: Sequence[QuestionScores]) -> Chart:
    """Accuracy beside confidence: on the diagonal, probabilities say how often the run is right."""
    found = describe_reliability(scores)
    curve = found["curve"]
    confidence = [one.mean_confidence for one in curve]
    accuracy = [one.accuracy for one in curve]
    counts = [one.count for one in curve]
    diagonal = {"x": [0, 1], "y": [0, 1], "mode": "lines", "name": "perfectly calibrated"}
    points = {
        "x": confidence,
        "y": accuracy,
        "mode": "lines+markers",
        "name": "this run",
        "cliponaxis": False,
        "customdata": counts,
        "hovertemplate": "confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{customdata} question(s)"
        "<extra></extra>",
        "line": {"color": "main", "width": 2},
        "marker": {"size": [6 + 18 * (count / max(counts)) ** 0.5 for count in counts], "opacity": 0.85},
    }
    return {
        "id": "reliability",
        "title": "Reliability",
        "note": f"NLL {found['nll']:.3f} nats, Brier score {found['brier']:.3f}, ECE {found['ece']:.3f} on "
        f"{found['num_answered']:,} question(s). Larger points hold more of them.",
        "data": [
            diagonal | {"line": {"color": "soft", "dash": "dot", "width": 1.5}, "hoverinfo": "skip"},
            points,
        ],
        "layout": {
            "xaxis": {"title": {"text": "mean confidence"}, "range": [0, 1.02]},
            "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1.04]},
        },
    }


def position_chart(
    scores: Sequence[QuestionScores], members: Mapping[str, Rows], before: Mapping[str, Rows]
) -> Chart:
    """Where answers stand and where the run says they stand; of debiased members also before it."""
    names = _position_names(scores)
    if not any(row.question.answer is not None for row in scores):
        return _unanswered_positions(scores, names)
    bias = measure_position_bias(scores)
    data = [_shares("the answer", names, [one.share_gold for one in bias.positions], "soft")]
    notes = [f"Standard deviation of recalls {bias.recall_std:.3f} (0 is without bias)"]
    for member, rows in before.items():
        if all(row.question.answer is None for row in rows):
            continue
        was = measure_position_bias(rows)
        label = "before debiasing" if len(members) == 1 else f"{member} before debiasing"
        data.append(_position_bars(label, names, was, "warm"))
        notes.append(f"{label} {was.recall_std:.3f}")
        if len(members) > 1:
            data.append(
                _position_bars(f"{member} debiased", names, measure_position_bias(members[member]), "accent")
            )
    data.append(_position_bars("the run's best option", names, bias, "main"))
    title = "Labels" if scores[0].question.is_text else "Position bias"
    return _position_figure(title, "; ".join(notes) + ".", data)


def agreement_chart(members: Mapping[str, Rows]) -> Chart:
    """[M, M] how often two members have the same best option, and whether they err together."""
    found = measure_agreement(members)
    names = list(found.names)
    correlations = [[_number(value) for value in row] for row in found.error_correlation]
    told = [
        [
            f"{found.num_questions[i][j]:,} question(s)"
            + ("" if correlations[i][j] is None else f", errors correlate {correlations[i][j]:.2f}")
            for j in range(len(names))
        ]
        for i in range(len(names))
    ]
    shares = [[_number(value) for value in row] for row in found.same_answer]
    return {
        "id": "agreement",
        "title": "Members' agreement",
        "note": "Share of questions on which two members have the same best option. Members that err on "
        "different questions gain by being averaged: point at a field for the correlation of their errors.",
        "data": [
            {
                "type": "heatmap",
                "x": names,
                "y": names,
                "z": shares,
                "zmin": 0,
                "zmax": 1,
                "text": [["" if share is None else f"{share:.0%}" for share in row] for row in shares],
                "texttemplate": "%{text}",
                "customdata": told,
                "hovertemplate": "%{y} and %{x}: %{z:.1%}<br>%{customdata}<extra></extra>",
                "showscale": False,
                "colorscale": "heat",
                "xgap": 2,
                "ygap": 2,
            }
        ],
        "layout": {"xaxis": {"type": "category"}, "yaxis": {"type": "category", "autorange": "reversed"}},
    }


def _bars(name: str, values: np.ndarray, colour: str, *, as_share: bool = False) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(0.0, 1.0))
    heights = counts / max(1, len(values)) if as_share else counts
    return {
        "type": "bar",
        "name": name,
        "x": [float(x) for x in (edges[:-1] + edges[1:]) / 2],
        "y": [float(y) for y in heights],
        "customdata": [[round(float(a), 2), round(float(b), 2)] for a, b in pairwise(edges)],
        "hovertemplate": "%{customdata[0]} to %{customdata[1]}: %{y" + (":.1%" if as_share else "") + "}",
        "marker": {"color": colour},
    }


def _position_names(scores: Sequence[QuestionScores]) -> list[str]:
    longest = max(scores, key=lambda row: len(row.question.options)).question
    return [longest.name_of(place) for place in range(len(longest.options))]


def _unanswered_positions(scores: Sequence[QuestionScores], names: Sequence[str]) -> Chart:
    best = np.bincount([row.order[0] for row in scores], minlength=len(names)) / len(scores)
    note = "Without known answers this tells little: a position far above the others may be a preference."
    data = [_shares("the run's best option", names, best.tolist(), "main")]
    return _position_figure("Best options by position", note, data)


def _position_bars(label: str, names: Sequence[str], bias: PositionBias, colour: str) -> dict[str, Any]:
    bars = _shares(label, names, [one.share_answered for one in bias.positions], colour)
    recalls = [
        "" if one.recall is None else f", accuracy of answers there {one.recall:.3f}"
        for one in bias.positions
    ]
    return bars | {"customdata": recalls, "hovertemplate": "%{x}: %{y:.1%}%{customdata}"}


def _shares(label: str, names: Sequence[str], shares: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": label,
        "x": list(names[: len(shares)]),
        "y": [float(share) for share in shares],
        "marker": {"color": colour},
        "hovertemplate": "%{x}: %{y:.1%}",
    }


def _position_figure(title: str, note: str, data: list[dict[str, Any]]) -> Chart:
    shows_names = len(data[0]["x"]) <= MAX_NAMED_LABELS
    axis = {"type": "category", "showticklabels": shows_names}
    layout = {
        "barmode": "group",
        "xaxis": axis,
        "yaxis": {"title": {"text": "share of questions"}, "tickformat": ".0%"},
    }
    return {"id": "positions", "title": title, "note": note, "data": data, "layout": layout}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
