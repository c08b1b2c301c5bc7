"""One folder in, one folder out: the program of the container image, under mercure's contract and MONAI Deploy's.

    MERCURE_IN_DIR=in MERCURE_OUT_DIR=out python -m concordct.serving.module      # settings from in/task.json
    MONAI_INPUTPATH=in MONAI_OUTPUTPATH=out python -m concordct.serving.module    # settings from the environment

Every CT series of the input goes to the model that was calibrated from its kernel, or to the one that the settings
name. Files leave as `SERIES#OBJECT.dcm` beside `result.json`. Nothing here needs the network or the service's own
libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concordct.errors import ConcordctError
from concordct.methods.models import Model, kernel_mismatch, load_model
from concordct.serving.worker import Made, Task, standardize
from concordct.volumes.allowable import ALLOWABLE
from concordct.volumes.decode import open_dataset
from concordct.volumes.find import find_series
from concordct.volumes.given import read_json
from concordct.volumes.place import atomic_file
from concordct.volumes.series import Series

#: Where the contracts say that input, output and models lie, the first that is set counts.
INPUTS = ("MERCURE_IN_DIR", "MONAI_INPUTPATH", "HOLOSCAN_INPUT_PATH")
OUTPUTS = ("MERCURE_OUT_DIR", "MONAI_OUTPUTPATH", "HOLOSCAN_OUTPUT_PATH")
MODELS = ("CONCORDCT_MODELS", "MONAI_MODELPATH", "HOLOSCAN_MODEL_PATH")
#: Settings of mercure's task.json; in the environment they are upper case behind this.
PREFIX = "CONCORDCT_"
TASK, RESULT = "task.json", "result.json"


@dataclass(frozen=True)
class ModuleSettings:
    """What the contracts may choose.

    Attributes
    ----------
    model : the name of a model in the image; None for the one of the series' kernel.
    keep_source : whether the input files go to the output, too.
    """

    model: str | None = None
    mode: str = "sample"
    seed: int = 0
    check: str = "warn"
    any_kernel: bool = False
    allow: tuple[str, ...] = ()
    structured_report: bool = False
    keep_source: bool = False


def settings_of(folder: Path, environment: Mapping[str, str]) -> ModuleSettings:
    """Settings of mercure's task in the input folder, else of the environment.

    Raises
    ------
    ConcordctError : an unknown setting, or a value of another kind.
    """
    task = folder / TASK
    if task.is_file():
        given, where = _task_settings(task), TASK
    else:
        names = ModuleSettings.__dataclass_fields__
        given = {name: environment[PREFIX + name.upper()] for name in names if PREFIX + name.upper() in environment}
        where = "environment"
    return ModuleSettings(**{name: _value(name, value, where) for name, value in given.items()})


def _task_settings(path: Path) -> dict[str, Any]:
    try:
        process = read_json(path).get("process") or {}
    except (OSError, AttributeError):
        raise ConcordctError(f"{path.name}: expected mercure's task as JSON, found something else") from None
    # One module, or a chain of them: the first that is ours by its settings, else the last.
    steps = process if isinstance(process, list) else [process]
    for step in steps:
        settings = dict(step.get("settings") or {})
        if set(settings) & set(ModuleSettings.__dataclass_fields__):
            return settings
    return dict(steps[-1].get("settings") or {}) if steps else {}


def _value(name: str, value: Any, where: str) -> Any:
    field = ModuleSettings.__dataclass_fields__.get(name)
    if field is None:
        known = ", ".join(ModuleSettings.__dataclass_fields__)
        raise ConcordctError(f"{where}: expected settings of {known}, found {name!r}")
    wrong = ConcordctError(f"{where}: {name}: expected {field.type}, found {value!r}")
    choices = {"mode": ("sample", "mean"), "check": ("warn", "refuse", "off")}.get(name)
    if choices is not None and value not in choices:
        raise ConcordctError(f"{where}: {name}: expected {' or '.join(choices)}, found {value!r}")
    if field.type == "bool":
        words = {"true": True, "1": True, "false": False, "0": False}
        found = value if isinstance(value, bool) else words.get(str(value).lower())
        if found is None:
            raise wrong
        return found
    if name == "seed":
        try:
            return int(value)
        except (TypeError, ValueError):
            raise wrong from None
    if name == "allow":
        codes = tuple(value.split(",") if isinstance(value, str) else value)
        if set(codes) - ALLOWABLE:
            raise wrong
        return codes
    if not isinstance(value, str):
        raise wrong
    return value


def run(source: Path, target: Path, models: Path, settings: ModuleSettings) -> dict[str, Any]:
    """Standardize every series of a folder.

    Returns
    -------
    What `result.json` says: for each series what became of it, by the UID of its result; and mercure's notification.

    Raises
    ------
    ConcordctError : no CT series, no model, or an output that cannot be written.
    """
    loaded = [load_model(path) for path in sorted(models.iterdir()) if path.is_dir()] if models.is_dir() else []
    if settings.model is not None:
        loaded = [model for model in loaded if model.name == settings.model]
    if not loaded:
        raise ConcordctError(f"{models}: expected a model{f' {settings.model}' if settings.model else ''}, found none")
    found = find_series(source).series
    if not found:
        raise ConcordctError(f"{source}: expected a CT series, found none")
    target.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=target, prefix=".work-") as work:
        for number, series in enumerate(found):
            rows.append(_one(series, loaded, settings, Path(work) / str(number), target, models))
    if settings.keep_source:
        for path in {ref.path for series in found for ref in series.slices}:
            shutil.copyfile(path, target / path.name)
    failed = [row for row in rows if row["status"] == "failed" or (row["self_check"] or {}).get("failed")]
    done = sum(row["status"] == "done" for row in rows)
    text = f"concordct: {done} of {len(rows)} series standardized" + "".join(
        f"; {row['reason'] or 'self-check failed'}" for row in failed
    )
    return {"series": rows, "__mercure_notification": {"text": text, "requested": bool(failed)}}


def _one(
    series: Series, loaded: list[Model], settings: ModuleSettings, work: Path, target: Path, models: Path
) -> dict[str, Any]:
    row: dict[str, Any] = {"kernel": series.kernel, "slices": series.shape[0], "reason": None, "self_check": None}
    model = next((one for one in loaded if kernel_mismatch(one, series.kernel) is None), None)
    if model is None and settings.any_kernel:
        model = loaded[0]
    if model is None:
        return {**row, "status": "skipped", "reason": kernel_mismatch(loaded[0], series.kernel)}
    inside = work / "in"
    inside.mkdir(parents=True)
    for index, path in enumerate(sorted({ref.path for ref in series.slices})):
        (inside / f"{index:05d}.dcm").symlink_to(path.resolve())
    made: Made = standardize(
        Task(
            str(inside), str(work / "out"), str(models / model.name), settings.mode, settings.seed, settings.check,
            settings.any_kernel, settings.allow, settings.structured_report,
        ),
        {str(models / model.name): model},
    )  # fmt: skip
    if made.reason is not None:
        return {**row, "status": "failed", "reason": made.reason}
    record = json.loads((work / made.results[0] / "derivation.json").read_text())
    uid = record["series_uid"]
    for file, _, instance in made.objects:
        own = open_dataset(work / file, tags=("SeriesInstanceUID",)).SeriesInstanceUID
        os.replace(work / file, target / f"{own}#{instance}.dcm")
    return {
        **row, "status": "done", "model": model.name, "model_sha256": model.sha256, "series_uid": uid,
        "self_check": made.self_check, "notes": list(made.notes),
    }  # fmt: skip


def main(environment: Mapping[str, str] | None = None) -> int:
    """Run under whichever contract the environment states; 0 when nothing failed."""
    given = os.environ if environment is None else environment
    try:
        source, target, models = (_place(names, given) for names in (INPUTS, OUTPUTS, MODELS))
        result = run(source, target, models, settings_of(source, given))
        with atomic_file(target / RESULT, overwrite=True) as aside:
            aside.write_text(json.dumps(result, indent=1) + "\n")
    except ConcordctError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result["__mercure_notification"]["text"])
    return 1 if any(row["status"] == "failed" for row in result["series"]) else 0


def _place(names: tuple[str, ...], given: Mapping[str, str]) -> Path:
    found = next((given[name] for name in names if given.get(name)), None)
    if found is None:
        raise ConcordctError(f"environment: expected {' or '.join(names)}, found none of them")
    return Path(found)


if __name__ == "__main__":
    sys.exit(main())
