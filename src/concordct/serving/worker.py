"""A process that standardizes one series after another for the service, and its handle in the service.

The process reads jobs from standard input, one JSON object a line, and answers each with one line. It ends with the
service: when its input is closed, by whatever end the service came to, it leaves at once. A series that takes it down
(out of memory, a crash in a decoder) takes nothing else down.

    worker = Worker()
    answer = worker.run(Task(input=..., output=..., model=...))      # raises Died when the process does
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

#: The process gives way to the node and to everything else that answers somebody.
NICENESS = 10
#: Where the structured report of a result lies, beside its folder.
REPORT_SUFFIX = ".sr.dcm"


@dataclass(frozen=True)
class Task:
    """One folder with one series, and what is to be made of it."""

    input: str
    output: str
    model: str
    mode: str = "sample"
    seed: int = 0
    check: str = "warn"
    any_kernel: bool = False
    allow: Sequence[str] = ()
    structured_report: bool = False


@dataclass(frozen=True)
class Made:
    """The worker's answer.

    Attributes
    ----------
    reason : why there is no result; None when there is.
    objects : (file, SOP class, SOP instance UID) of everything made, files relative to the output's parent.
    results : the folders of the derived series, likewise.
    """

    reason: str | None
    objects: tuple[tuple[str, str, str], ...] = ()
    results: tuple[str, ...] = ()
    slices: int = 0
    self_check: dict[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())


class Died(Exception):
    """The process is no more."""


class Worker:
    """The process, started when it is needed.

    Parameters
    ----------
    keep : file descriptors that stay open in it, such as a lock that holds until it has ended, too.
    """

    def __init__(self, keep: Sequence[int] = ()) -> None:
        self._keep = tuple(keep)
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None where there is none."""
        return None if self._process is None else self._process.pid

    def run(self, job: Task) -> Made:
        """Have a job done.

        Raises
        ------
        Died : the process ended before it answered; the next call starts another.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            self._process = None
            code = process.wait()
            raise Died(f"signal {-code}" if code < 0 else f"exit code {code}")
        said = json.loads(line)
        return Made(
            said["reason"],
            tuple((file, sop_class, uid) for file, sop_class, uid in said["objects"]),
            tuple(said["results"]),
            said["slices"],
            said["self_check"],
            tuple(said["notes"]),
        )

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "concordct.serving.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                pass_fds=self._keep,
            )  # fmt: skip
        return self._process

    def end(self) -> None:
        """End the process, also in the middle of a job: what it makes stands whole or not at all."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


# ---- in the process ------------------------------------------------------------------------------------------------


def standardize(job: Task, models: dict[str, Any]) -> Made:
    """Do a job; what is refused is an answer."""
    from concordct.errors import ConcordctError
    from concordct.methods.models import load_model
    from concordct.pipelines.standardize import Settings, plan, run

    output = Path(job.output)
    try:
        if job.model not in models:
            models[job.model] = load_model(Path(job.model))
        model = models[job.model]
        settings = Settings(
            mode=job.mode,  # type: ignore[arg-type]
            seed=job.seed,
            allow=frozenset(job.allow),
            any_kernel=job.any_kernel,
            check=job.check,  # type: ignore[arg-type]
        )
        planned = plan(Path(job.input), output, model, settings)
        records = run(planned, model, output, settings)
        failed = [str(record.reason) for record in records if record.status == "failed"]
        skipped = [str(record.reason) for record in records if record.status == "skipped"]
        done = [record for record in records if record.status == "done"]
        if failed or not done:
            return Made(_without_paths("; ".join(failed or skipped) or "nothing to standardize", job))
        folders = [each.output for each, record in zip(planned.jobs, records, strict=False) if record.status == "done"]
        objects = [found for folder in folders for found in _objects(folder, output.parent)]
        if job.structured_report:
            from concordct.volumes.structured_report import write_self_check_report

            for folder in folders:
                report = folder.with_name(folder.name + REPORT_SUFFIX)
                sop_class, uid = write_self_check_report(folder, report)
                objects.append((str(report.relative_to(output.parent)), sop_class, uid))
    except ConcordctError as error:
        return Made(_without_paths(str(error), job))
    except MemoryError:
        return Made("out of memory")
    return Made(
        None,
        tuple(objects),
        tuple(str(folder.relative_to(output.parent)) for folder in folders),
        sum(record.slices for record in done),
        done[0].self_check,
        tuple(_without_paths(note, job) for record in done for note in record.notes) + tuple(skipped),
    )


def _objects(folder: Path, root: Path) -> list[tuple[str, str, str]]:
    from concordct.volumes.arrived import CT_CLASSES
    from concordct.volumes.derived import RECORD

    record = json.loads((folder / RECORD).read_text())
    name = folder.relative_to(root)
    return [(str(name / one["file"]), str(CT_CLASSES[0]), one["sop_instance_uid"]) for one in record["instances"]]


def _without_paths(text: str, job: Task) -> str:
    """Folders of the store say nothing to those who read a reason."""
    for path, shown in ((job.input, "series"), (job.output, "result"), (str(Path(job.model).parent), "models")):
        text = text.replace(path, shown)
    return text


def main() -> None:
    """Serve standard input until it ends."""
    from concordct.errors import reason_of

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, lines), daemon=True).start()
    models: dict[str, Any] = {}
    while True:
        job = Task(**json.loads(lines.get()))
        try:
            made = standardize(job, models)
        except Exception as error:
            # The text of a foreign exception may hold what a header says of the patient.
            made = Made(_without_paths(reason_of(error), job))
        answers.write(json.dumps(asdict(made)) + "\n")
        answers.flush()


def _read(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
