"""Text files that people hand in: tables, JSON, YAML. A pipe is refused, and what would take memory or time for ever.

Loading never builds more than the file holds: no YAML aliases (nine lines of them make gigabytes), no nesting that a
later recursion could not follow, no integers of a million digits.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from concordct.errors import ConcordctError

#: A card of a model with its spectra is 100 kB, a parameter file 5 kB; the YAML reader takes 1 s for 100 kB.
MOST_JSON_BYTES, MOST_YAML_BYTES = 2**26, 2**18
#: Larger integers count nothing.
MOST_BITS = 256
#: Nesting of real ones is below ten.
MOST_DEPTH = 64

#: Names of keys and places in lists that lead to a part of a file.
Where = tuple[str | int, ...]


def open_text(path: str | Path, *, newline: str | None = "", encoding: str = "utf-8-sig") -> TextIO:
    """Open a text file for reading; as `open`, but a pipe or device, which would hang, is an OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a regular file, found a folder, a pipe or a device")
    return open(handle, newline=newline, encoding=encoding)


def read_json(path: Path, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """What a JSON file holds.

    Raises
    ------
    OSError : missing or unreadable.
    ConcordctError : no JSON in UTF-8, larger than `MOST_JSON_BYTES`, nested deeper than `MOST_DEPTH`, or with a name
        that stands twice in one object: one of the two values would be lost.
    """
    text = _text(path, MOST_JSON_BYTES)
    try:
        found = json.loads(text, parse_constant=parse_constant, object_pairs_hook=lambda pairs: _once(pairs, path))
    except json.JSONDecodeError as error:
        raise ConcordctError(f"{path}: expected JSON, found a syntax error at line {error.lineno}") from None
    except (ValueError, RecursionError):  # integers of thousands of digits, thousands of brackets
        raise ConcordctError(f"{path}: expected JSON, found numbers or nesting that no program writes") from None
    _check_depth(found, path)
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, of plain types.

    Raises
    ------
    OSError : missing or unreadable.
    ConcordctError : no YAML in UTF-8, larger than `MOST_YAML_BYTES`, nested deeper than `MOST_DEPTH`, with aliases,
        with integers of more than `MOST_BITS`, or with a name that stands twice in one mapping (YAML 1.2 3.2.1.1).
    """
    return yaml_with_lines(path)[0]


def yaml_with_lines(path: Path) -> tuple[Any, dict[Where, int]]:
    """`read_yaml`, and the line, from 1, of every key and item."""
    import yaml  # most runs read no YAML

    text = _text(path, MOST_YAML_BYTES)
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConcordctError(f"{path}: expected YAML without aliases, found '*{event.anchor}'")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ConcordctError(f"{path}: expected nesting of at most {MOST_DEPTH}, found more")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, {}
            _check_nodes(node, path)
            lines = dict(_lines(node))
            return _no_giants(loader.construct_document(node), path), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConcordctError(f"{path} is no YAML: syntax error in line {mark.line + 1 if mark else 1}") from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise ConcordctError(f"{path} is no YAML ({type(error).__name__})") from None


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConcordctError(f"{path}: expected each name once in an object, found {twice[:60]!a} twice")
    return found


def _check_nodes(node: Any, path: Path) -> None:
    """Refuse a YAML tree in which a mapping names something twice."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    again = f"{key.value[:60]!a} again in line {key.start_mark.line + 1}"
                    raise ConcordctError(f"{path}: expected each name once, found {again}")
                seen.add(key.value)
            _check_nodes(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_nodes(value, path)


def _lines(node: Any, where: Where = ()) -> Iterator[tuple[Where, int]]:
    import yaml

    yield where, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            yield from _lines(value, (*where, name))
            yield (*where, name), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(value, (*where, index))


def _no_giants(found: Any, path: Path) -> Any:
    """Refuse integers that cannot even be printed, which hexadecimal digits can spell."""
    waiting = [found]
    while waiting:
        one = waiting.pop()
        if isinstance(one, int) and one.bit_length() > MOST_BITS:
            raise ConcordctError(f"{path}: expected numbers of at most {MOST_BITS} bits, found a larger one")
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set)):
            waiting += one
    return found


def _text(path: Path, most: int) -> str:
    with open_text(path, newline=None) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ConcordctError(f"{path}: expected at most {most} bytes, found {size}")
        try:
            return file.read()
        except UnicodeDecodeError:
            raise ConcordctError(f"{path}: expected text in UTF-8, found other bytes") from None


def _check_depth(found: Any, path: Path) -> None:
    level = [found]
    for _ in range(MOST_DEPTH):
        level = [inner for one in level if isinstance(one, (dict, list))
                 for inner in (one.values() if isinstance(one, dict) else one)]  # fmt: skip
        if not level:
            return
    raise ConcordctError(f"{path}: expected nesting of at most {MOST_DEPTH}, found more")
