"""Which rule a series falls under: the first one that matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from concordct.serving.config import Match, Rule
from concordct.volumes.arrived import Facts, series_facts
from concordct.volumes.find import find_series

#: Thickness of 0.6 and 0.625 mm is one in some headers.
SAME_THICKNESS_MM = 0.03


def first_match(rules: Sequence[Rule], facts: Facts) -> Rule | None:
    """The rule that decides about a series; None where none matches."""
    return next((rule for rule in rules if matches(rule.match, facts)), None)


def matches(match: Match, facts: Facts) -> bool:
    """Whether every key that the rule names is met; a key that the header does not say is not."""
    pairs = (
        (match.kernel, facts.kernel),
        (match.manufacturer, facts.manufacturer),
        (match.model, facts.model),
        (match.body_part, facts.body_part),
        (match.description, facts.description),
    )
    for patterns, value in pairs:
        if patterns and not (value and any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns)):
            return False
    if match.thickness_mm is None:
        return True
    least, greatest = match.thickness_mm
    thickness = facts.thickness_mm
    return thickness is not None and least - SAME_THICKNESS_MM <= thickness <= greatest + SAME_THICKNESS_MM


def explain(rules: Sequence[Rule], folder: Path) -> Iterator[str]:
    """What would become of each series under a folder, one line each."""
    for series in find_series(folder).series:
        rule = first_match(rules, series_facts([series.slices[0].path]))
        said = "no rule matches, it would be set aside" if rule is None else f"rule {rule.name}: {rule.action}"
        if rule is not None and rule.destinations:
            said += f", then to {', '.join(rule.destinations)}"
        yield f"{series.folder}, kernel {series.kernel or '?'}, {series.shape[0]} slices: {said}"
