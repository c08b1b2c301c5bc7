"""The service: a node that takes series, workers that standardize them, couriers that bring them on, a page to watch.

    service = Service(load_config(path))
    service.start()
    service.wait()          # until stop() or a signal

One process holds the store at a time; another waits until it, and the workers it started, have ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from concordct.errors import ConcordctError, reason_of
from concordct.serving.commitment import Commitments
from concordct.serving.config import Config, Rule
from concordct.serving.delivery import Courier, Outgoing
from concordct.serving.inbox import Inbox
from concordct.serving.ledger import ENDED, Entry
from concordct.serving.log import say, silence_libraries
from concordct.serving.metrics import Metrics
from concordct.serving.node import Node
from concordct.serving.queue import Queue
from concordct.serving.rules import first_match
from concordct.serving.worker import Died, Made, Task, Worker
from concordct.volumes.arrived import Facts, series_facts
from concordct.volumes.derived_header import TRANSFER_SYNTAX

#: Wait between two looks at what is due, s.
_LOOK_S = 0.5
#: Time that the service before us gets to end, s.
TAKE_OVER_S = 30.0
#: Retention is looked at so often, s.
_CLEAN_S = 60.0


class Service:
    """All of it, from `start` to `stop`."""

    def __init__(self, config: Config) -> None:
        silence_libraries()
        self.config = config
        folder = config.store.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConcordctError(f"{folder}: expected a folder to write to, found: {error.strerror}") from None
        self._lock = hold(folder / "lock")
        self.queue = Queue(folder / "queue.sqlite")
        self.inbox = Inbox(config.store, self.queue)
        self.commitments = Commitments()
        self.node = Node(config, self.inbox, self.commitments)
        self.metrics = Metrics(self.queue, self.node, config)
        self.inbox.on_answer = self.metrics.answered
        self.ending = threading.Event()
        self.workers = [Worker(keep=(self._lock.fileno(),)) for _ in range(config.workers)]
        self._threads: list[threading.Thread] = []
        self._couriers: list[Courier] = []
        self._page: threading.Thread | None = None

    # ---- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Clear what a service that died left, take up its work, and open the doors.

        Raises
        ------
        ConcordctError : an address that cannot be listened at.
        """
        self.inbox.clear_leftovers()
        self.queue.recover(self.config.tries)
        self._threads = [
            threading.Thread(target=self._work, args=(worker,), name=f"worker {index}", daemon=True)
            for index, worker in enumerate(self.workers)
        ]
        self._threads.append(threading.Thread(target=self._keep_house, name="house", daemon=True))
        self._couriers = [
            Courier(
                destination, self.queue, self.commitments, title=self.config.node.ae_title, objects=self.outgoing,
                outcome=self.metrics.delivered,
            )
            for destination in self.config.destinations
        ]  # fmt: skip
        if self.config.page is not None:
            from concordct.serving.page import PageServer

            self._page = PageServer(self, self.config.page)
            self._page.start()
        self.node.start()
        for thread in (*self._threads, *self._couriers):
            thread.start()
        say("started", workers=len(self.workers))

    def wait(self) -> None:
        """Until somebody stops the service."""
        self.ending.wait()

    def stop(self) -> None:
        """Close the doors; work under way is dropped, it starts anew with the next start."""
        self.ending.set()
        self.node.stop()
        for courier in self._couriers:
            courier.ending.set()
        if self._page is not None:
            self._page.stop()  # type: ignore[attr-defined]
        for worker in self.workers:
            worker.end()
        for thread in (*self._threads, *self._couriers):
            if thread.is_alive():
                thread.join(timeout=5)
        self.queue.close()
        self._lock.close()
        say("stopped")

    def healthy(self) -> dict[str, bool]:
        """What has to hold for the service to do its work."""
        try:
            room = self.inbox.room_for(0)
            self.queue.counts()
            database = True
        except Exception:
            room = database = False
        return {
            "node": self.node.listening,
            "queue": database,
            "room": room,
            "workers": all(thread.is_alive() for thread in (*self._threads, *self._couriers)),
        }

    # ---- work ------------------------------------------------------------------------------------------------------

    def _work(self, worker: Worker) -> None:
        while not self.ending.is_set():
            entry = self.queue.claim()
            if entry is None:
                with self.queue.changes:
                    self.queue.changes.wait(_LOOK_S)
                continue
            try:
                self._do(entry, worker)
            except Exception as error:
                if not self.ending.is_set():
                    self._stumble(entry, reason_of(error), None)

    def _do(self, entry: Entry, worker: Worker) -> None:
        folder = self.inbox.folder(entry.id)
        facts = series_facts(folder / stored.file for stored in self.queue.objects(entry.id))
        rule = first_match(self.config.rules, facts)
        if rule is None or rule.action == "drop":
            state, reason = ("failed", "no rule matches") if rule is None else ("dropped", "dropped by its rule")
            self._end(entry, state, rule, facts, reason=reason)
        elif rule.action == "forward":
            self._end(entry, "made", rule, facts, owed=rule.destinations)
        else:
            self._standardize(entry, rule, facts, worker)

    def _standardize(self, entry: Entry, rule: Rule, facts: Facts, worker: Worker) -> None:
        output = self.inbox.result(entry.id, entry.generation)
        output.parent.mkdir(exist_ok=True)
        for other in output.parent.iterdir():
            if not other.name.startswith(output.name) and not other.name.startswith(f".{output.name}"):
                shutil.rmtree(other, ignore_errors=True) if other.is_dir() else other.unlink(missing_ok=True)
        job = Task(
            str(self.inbox.folder(entry.id)), str(output), str(rule.model), rule.mode, rule.seed, rule.check,
            rule.any_kernel, sorted(rule.allow), rule.structured_report,
        )  # fmt: skip
        began = time.monotonic()
        try:
            made = worker.run(job)
        except Died as error:
            if self.ending.is_set():
                self.queue.put_back(entry)
            else:
                self._stumble(entry, f"its process ended ({error})", rule)
            return
        seconds = time.monotonic() - began
        if made.reason is not None:
            self._stumble(entry, made.reason, rule)
            return
        self.metrics.standardized(seconds)
        owed = () if rule.dry_run else rule.destinations
        reason = None if owed else ("dry run: kept, sent nowhere" if rule.dry_run else "kept, no destination")
        self._end(entry, "made", rule, facts, reason=reason, made=made, seconds=seconds, owed=owed)

    def _end(
        self, entry: Entry, state: str, rule: Rule | None, facts: Facts, *, reason: str | None = None,
        made: Made | None = None, seconds: float | None = None, owed: Sequence[str] = (),
    ) -> None:  # fmt: skip
        root = self.inbox.results / entry.id
        size = sum((root / file).stat().st_size for file, _, _ in made.objects) if made is not None else 0
        kept = self.queue.finish(
            entry, state, rule=None if rule is None else rule.name, reason=reason,  # type: ignore[arg-type]
            facts=_shown(facts), made=None if made is None else vars(made), made_bytes=size, seconds=seconds, owed=owed,
        )  # fmt: skip
        if kept:
            say("series " + state, level="error" if state == "failed" else "info", series=entry.id, state=state,
                rule=None if rule is None else rule.name, reason=reason, objects=entry.objects,
                seconds=None if seconds is None else round(seconds, 2))  # fmt: skip
        else:
            say("series changed", level="warning", series=entry.id, reason="objects came while it ran; it runs again")

    def _stumble(self, entry: Entry, reason: str, rule: Rule | None) -> None:
        name = None if rule is None else rule.name
        over = self.queue.stumble(entry, reason, tries=self.config.tries, retry_s=self.config.retry_s, rule=name)
        say("series failed" if over else "series tried", level="error" if over else "warning", series=entry.id,
            reason=reason, rule=name, tries=entry.tries + 1)  # fmt: skip

    def outgoing(self, entry: Entry) -> list[Outgoing]:
        """What a delivery of a series consists of, by the rule that it was made under."""
        folder, root = self.inbox.folder(entry.id), self.inbox.results / entry.id
        made = [
            Outgoing(root / file, sop_class, uid, TRANSFER_SYNTAX)
            for file, sop_class, uid in entry.made.get("objects", ())
        ]
        rule = self.config.rule(entry.rule)
        source: list[Outgoing] = []
        if not made or (rule is not None and rule.also_source):
            source = [
                Outgoing(folder / one.file, one.sop_class, one.uid, one.syntax) for one in self.queue.objects(entry.id)
            ]
        return source + made

    # ---- house -----------------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        cleaned = 0.0
        while not self.ending.wait(_LOOK_S):
            try:
                for series in self.queue.settle(self.config.node.complete_after_s):
                    say("series complete", series=series, reason="nothing came for a while")
                if time.monotonic() - cleaned > _CLEAN_S:
                    cleaned = time.monotonic()
                    self.clean()
            except Exception as error:
                say("house", level="error", reason=reason_of(error))

    def clean(self) -> None:
        """Remove what the rules' retention lets go; what failed stays for ever unless a rule says otherwise."""
        now = time.time()
        for entry in self.queue.overdue(now):
            rule = self.config.rule(entry.rule)
            hours = None
            if rule is not None and entry.state in ENDED:
                hours = rule.retention.failed_h if entry.state == "failed" else rule.retention.sent_h
            if hours is not None and entry.ended_at is not None and now - entry.ended_at >= hours * 3600:
                self.inbox.forget(entry.id)
                say("series removed", series=entry.id, state=entry.state)


def _shown(facts: Facts) -> dict[str, str | float | None]:
    """All but the free text."""
    return {name: value for name, value in vars(facts).items() if name != "description" and value is not None}


def hold(path: Path, *, wait_s: float = TAKE_OVER_S) -> IO[str]:
    """The store's lock. A service that died leaves it to its workers, until they have ended, too.

    Raises
    ------
    ConcordctError : another service holds it.
    """
    file = open(path, "a+")  # noqa: SIM115 - it stays open as long as the service lives
    os.set_inheritable(file.fileno(), False)
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > end:
                file.close()
                raise ConcordctError(f"{path.parent}: expected a store of its own, found one in use") from None
            time.sleep(0.1)
