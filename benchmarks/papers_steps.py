"""How many steps a sample is drawn in: chosen on the validation subjects, by the mean CCC of the six classes.

The choice is kept in `steps.json` beside the models; the table's rows "steps chosen on validation" read it.
"""

from __future__ import annotations

import json

import numpy as np

from benchmarks.papers_cohort import runs
from benchmarks.papers_measure import Judged, fixed_stage, measured, model_of, row_stage
from benchmarks.papers_rows import DCT, DDPM, LONG
from concordct.agreement import concordance

#: Models that are asked, and steps that are tried.
MODELS, STEPS = (LONG, DCT, DDPM), (1, 2, 4, 8, 16)


def steps_table(subjects: tuple[Judged, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: model, steps, CCC of each class and their mean, seconds a slice; writes the choice."""
    target = measured(subjects, fixed_stage("target"), label="target")
    classes = list(dict.fromkeys(target.classes))
    chosen, rows = {}, []
    for name in MODELS:
        if not model_of(name).exists():
            continue
        means, lines = [], []
        for steps in STEPS:
            found = measured(subjects, row_stage(name, steps=steps), label=f"{name}, {steps} steps, validation")
            by_class = concordance.mean_by_class(
                concordance.ccc_per_feature(found.values, target.values), target.classes
            )
            values = [by_class[one].mean for one in classes]
            means.append(float(np.mean(values)))
            lines.append([name, str(steps), *(f"{one:.2f}" for one in values), "", f"{found.seconds:.2f}"])
        best = int(np.argmax(means))
        chosen[name] = STEPS[best]
        for index, (line, mean) in enumerate(zip(lines, means, strict=True)):
            line[-2] = f"**{mean:.3f}**" if index == best else f"{mean:.3f}"
        rows += lines
    (runs() / "steps.json").write_text(json.dumps(chosen) + "\n", encoding="utf-8")
    return ["", "steps", *classes, "mean", "processor s a slice"], rows
