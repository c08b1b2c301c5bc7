"""Work for engines that kills its process; apart, since processes load little with it."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def square_or_die(item: tuple[int, str]) -> str:
    number, place = item
    if number == 2 and not os.path.exists(place):
        Path(place).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return str(number**2)


def square_or_die_always(number: int) -> str:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return str(number**2)
