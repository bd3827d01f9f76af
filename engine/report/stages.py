"""The stages of a pipeline: a table, a chart of what each gained, and how far a question got."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from strata.engine.report.charts import Chart
from strata.engine.report.values import format_value, human_time, plain, section

HEADER = ["stage", "members", "chosen", "reached", "changed", "time", "MAP@3 of these", "MAP@3 of all"]


def stages_of(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What `StageAccount.as_dict` says of each stage; empty for a run without stages."""
    return section(record, "measured").get("stages") or []


def stage_names(record: Mapping[str, Any]) -> list[str]:
    """Names of the stages, in order; empty where there is only one."""
    names = [str(stage["name"]) for stage in stages_of(record)]
    return names if len(names) > 1 else []


def last_stage(record: Mapping[str, Any], members: Collection[str]) -> int | None:
    """The last stage that a question reached, told by the members that scored it.

    A stage is told by the members that no earlier one has. None where none of them scored the question.
    """
    earlier: set[str] = set()
    reached = None
    for place, stage in enumerate(stages_of(record)):
        own = set(stage["members"]) - earlier
        earlier |= own
        if own & set(members):
            reached = place
    return reached


def stage_table(record: Mapping[str, Any]) -> list[list[str]]:
    """A header and a row a stage; empty for a run without stages."""
    stages = stages_of(record)
    return [HEADER, *map(_row, stages)] if stages else []


def stage_chart(record: Mapping[str, Any]) -> list[Chart]:
    """MAP@3 on a stage's own questions before and after it, and on all questions; empty where not known."""
    stages, final = stages_of(record), section(record, "metrics").get("map_at_3")
    if len(stages) < 2 or final is None or any(stage["metrics"] is None for stage in stages):
        return []
    names = [str(stage["name"]) for stage in stages]
    own = [stage for stage in stages if stage["chosen_before"] and stage["chosen_after"]]
    owned = [str(stage["name"]) for stage in own]
    of_all = [stage["metrics"]["map_at_3"] for stage in stages] + [final]
    data = [
        _bars("its questions before", owned, [stage["chosen_before"]["map_at_3"] for stage in own], "soft"),
        _bars("its questions after", owned, [stage["chosen_after"]["map_at_3"] for stage in own], "main"),
        {
            "x": [*names, "final"],
            "y": of_all,
            "mode": "lines+markers",
            "name": "all questions",
            "line": {"color": "good", "width": 2},
            "marker": {"size": 9},
            "hovertemplate": "%{x}: %{y:.3f}",
        },
    ]
    layout = {
        "barmode": "group",
        "xaxis": {"type": "category", "categoryorder": "array", "categoryarray": [*names, "final"]},
        "yaxis": {"title": {"text": "MAP@3"}, "rangemode": "tozero"},
    }
    note = "After each stage, with the weights that members had then; final: with fitted weights, calibrated."
    return [{"id": "stages", "title": "What each stage gained", "note": note, "data": data, "layout": layout}]


def _row(stage: Mapping[str, Any]) -> list[str]:
    before, after, of_all = (stage.get(key) or {} for key in ("chosen_before", "chosen_after", "metrics"))
    gained = [format_value("map_at_3", one.get("map_at_3")) for one in (before, after)]
    return [
        str(stage["name"]),
        plain(stage["members"]),
        f"{stage['num_chosen']:,}",
        f"{stage['num_reached']:,}",
        f"{stage['num_changed']:,}",
        human_time(stage["seconds"]),
        " to ".join(filter(None, gained)),
        format_value("map_at_3", of_all.get("map_at_3")),
    ]


def _bars(name: str, stages: Sequence[str], values: Sequence[float], colour: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": list(stages),
        "y": list(values),
        "marker": {"color": colour},
        "hovertemplate": "%{x}: %{y:.3f}",
    }
