"""Where a batch runs: processes of this machine, a Ray cluster, or one share of an array of jobs.

    for index, result in each(work, items, lost, engine=Local(4)): ...

What processes and files need is imported where it is used: the command line names engines before it does anything.
Whatever the engine, an item is done by the same function and leaves the same bytes, so engines and restarts mix. Items
name scans by their paths: voxels never travel between processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from concordct.errors import ConcordctError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: An item whose process died is tried so many times in all.
TRIES = 2


@dataclass(frozen=True)
class Local:
    """Processes of this machine; one works here and now."""

    workers: int = 1


@dataclass(frozen=True)
class Ray:
    """Actors of a Ray cluster, each with one core, that load what they need once.

    Attributes
    ----------
    address : of the cluster's head; None for the one that Ray finds, or a new one on this machine.
    workers : actors; 0 for one a core of the cluster.
    memory_gb : that each actor is placed by.
    """

    address: str | None = None
    workers: int = 0
    memory_gb: float = 1.5


@dataclass(frozen=True)
class Share:
    """Every n-th item, as one job of an array does it: of `count` jobs that with this `index`, from 1.

    The jobs need not know of each other; the last to end finds everything standing and writes what is merged.
    """

    index: int
    count: int
    within: Local | Ray = Local()

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConcordctError(
                f"expected a share from 1/{self.count} to {self.count}/{self.count}, found {self.index}"
            )


Engine = Local | Ray | Share
#: One process, the caller's own.
HERE = Local(1)


def within_of(engine: Engine) -> Local | Ray:
    """The engine that does the work of a share."""
    return engine.within if isinstance(engine, Share) else engine


def share_of(engine: Engine, items: Sequence[Item]) -> list[int]:
    """Indices of the items that this run does."""
    if isinstance(engine, Share):
        return list(range(engine.index - 1, len(items), engine.count))
    return list(range(len(items)))


def each(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    lost: Callable[[Item, str], Result],
    *,
    engine: Engine,
) -> Iterator[tuple[int, Result]]:
    """`work` of every item of this run, with its index, as they come.

    Parameters
    ----------
    work : picklable; it must not raise.
    lost : the result of an item whose process was killed, with the reason in words.

    Raises
    ------
    ConcordctError : no Ray, or no cluster at the address.
    """
    indices = share_of(engine, items)
    within = within_of(engine)
    chosen = [items[index] for index in indices]
    if isinstance(within, Local) and (within.workers <= 1 or len(chosen) <= 1):
        for index, item in zip(indices, chosen, strict=True):
            yield index, work(item)
        return
    fewer = replace(within, workers=min(within.workers or len(chosen), len(chosen)))
    with ready(within) if within in _standing else ready(fewer, _module_of(work)):
        crew = _standing.get(within) or _standing[fewer]
        for place, result in crew.run(work, chosen, lost):
            yield indices[place], result


def _module_of(work: Callable[..., Any]) -> str:
    """The module that a process needs for a work."""
    while isinstance(work, partial):
        work = work.func
    return work.__module__


def in_order(
    work: Callable[[Item], Result], items: Sequence[Item], lost: Callable[[Item, str], Result], *, engine: Engine
) -> list[Result]:
    """`work` of every item, by the workers of an engine; a share does not part these."""
    found = dict(each(work, items, lost, engine=within_of(engine)))
    return [found[index] for index in range(len(items))]


def counted(progress: Callable[[int, int], None] | None) -> Callable[[Any, int, int], None] | None:
    """Progress of `results_of` for a caller who only counts: (items done, items of this run)."""
    return None if progress is None else lambda _, done, total: progress(done, total)


def results_of(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    lost: Callable[[Item, str], Result],
    *,
    kept: Callable[[Item], Result | None],
    reason: Callable[[Result], str | None],
    marks: Path,
    engine: Engine,
    progress: Callable[[Result, int, int], None] | None = None,
) -> tuple[Result, ...]:
    """Results of this run's items, in order, and of all where what the other shares have done stands.

    Parameters
    ----------
    work, lost : as for `each`.
    kept : the result of an item that another share has done; None where it has not. Asked by a share alone.
    reason : why a result failed; None or empty for one that did not.
    marks : folder where a share leaves why its items failed, so that the last one can tell failed from not yet done;
        whoever joins the results removes it.
    progress : called with (the last result, items done, items of this run).

    Returns
    -------
    As many results as there are items, or fewer in a share that is not the last.
    """
    from concordct.volumes.place import atomic_file

    results: dict[int, Result] = {}
    mine = share_of(engine, items)

    def mark(index: int) -> Path:
        return marks / f"{index + 1}-of-{len(items)}.failed"

    for index, result in each(work, items, lost, engine=engine):
        results[index] = result
        if len(mine) < len(items):
            why = reason(result)
            if why:
                with atomic_file(mark(index), overwrite=True) as aside:
                    aside.write_text(why, encoding="utf-8", errors="backslashreplace")
            else:
                mark(index).unlink(missing_ok=True)
        if progress is not None:
            progress(result, len(results), len(mine))
    for index, item in enumerate(items) if len(mine) < len(items) else ():
        if index in results:
            continue
        try:
            found = kept(item)
        except ConcordctError:
            found = None
        if found is None and mark(index).exists():
            found = lost(item, mark(index).read_text(encoding="utf-8"))
        if found is None:
            return tuple(results[index] for index in mine)
        results[index] = found
    return tuple(result for _, result in sorted(results.items()))


class _LocalCrew:
    """Processes of this machine."""

    def __init__(self, engine: Local, load: Sequence[str] = ()) -> None:
        from concordct.volumes.workers import Crew

        self.crew = Crew(engine.workers, load)

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item], lost: Callable[[Item, str], Result]
    ) -> Iterator[tuple[int, Result]]:
        reason = f"its process was killed {TRIES} times (out of memory?); run again to resume"
        return self.crew.run(work, items, lambda item: lost(item, reason), tries=TRIES)

    def end(self) -> None:
        self.crew.end()


class _RayCrew:
    """Actors of a Ray cluster, one item each at a time; a dead one is replaced, and its item tried again elsewhere."""

    def __init__(self, engine: Ray, load: Sequence[str] = ()) -> None:
        try:
            import ray
        except ImportError:
            raise ConcordctError("expected Ray for its engine, found none: pip install 'concordct[ray]'") from None
        self.ray = ray
        self.started = not ray.is_initialized()
        if self.started:
            try:
                ray.init(address=engine.address, log_to_driver=False, configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConcordctError(f"{engine.address}: expected a Ray cluster, found none ({error})") from None

        class Worker:
            def __init__(self, load: Sequence[str]) -> None:
                from importlib import import_module

                for module in load:
                    import_module(module)

            def take(self, given: Callable[[Any], Any]) -> None:
                self.work = given

            def run(self, item: Any) -> Any:
                return self.work(item)

        memory = int(engine.memory_gb * 2**30)
        self.actor: Any = ray.remote(num_cpus=1, memory=memory, max_restarts=0)(Worker)
        count = engine.workers or int(ray.cluster_resources().get("CPU", 1))
        self.load = load
        self.idle: list[Any] = [self.actor.remote(self.load) for _ in range(count)]
        self.busy: dict[Any, tuple[Any, int]] = {}

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item], lost: Callable[[Item, str], Result]
    ) -> Iterator[tuple[int, Result]]:
        ray = self.ray
        shared = ray.put(work)  # once, whatever the number of actors; it names files and holds no voxels
        for worker in self.idle:
            worker.take.remote(shared)
        todo = deque(range(len(items)))
        deaths = dict.fromkeys(todo, 0)
        while todo or self.busy:
            while todo and self.idle:
                place, worker = todo.popleft(), self.idle.pop()
                self.busy[worker.run.remote(items[place])] = worker, place
            (ready,), _ = ray.wait(list(self.busy), num_returns=1)
            worker, place = self.busy.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayError as error:
                worker = self.actor.remote(self.load)
                worker.take.remote(shared)
                self.idle.append(worker)
                deaths[place] += 1
                if deaths[place] < TRIES:
                    todo.append(place)
                else:
                    reason = f"its worker died {TRIES} times ({type(error).__name__}); run again to resume"
                    yield place, lost(items[place], reason)
                continue
            self.idle.append(worker)
            yield place, result

    def end(self) -> None:
        for worker in [*self.idle, *(busy for busy, _ in self.busy.values())]:
            self.ray.kill(worker)
        if self.started:
            self.ray.shutdown()


_Crew = _LocalCrew | _RayCrew
#: Workers that stand ready, by the engine that was asked for.
_standing: dict[Local | Ray, _Crew] = {}


@contextmanager
def ready(engine: Engine, *load: str) -> Iterator[None]:
    """The workers of an engine, started now for all that is done on it inside.

    Parameters
    ----------
    load : modules that the workers load meanwhile.
    """
    within = within_of(engine)
    if within in _standing or (isinstance(within, Local) and within.workers <= 1):
        yield
        return
    crew = _RayCrew(within, load) if isinstance(within, Ray) else _LocalCrew(within, load)
    _standing[within] = crew
    try:
        yield
    finally:
        del _standing[within]
        crew.end()
