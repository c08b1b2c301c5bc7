"""matplotlib without a display, and refused in words where it finds no place for its cache."""

from __future__ import annotations

import logging
from typing import Any

from concordct.errors import ConcordctError


def ready_to_draw() -> None:
    """Load matplotlib; called before long work that ends in a picture.

    Raises
    ------
    ConcordctError : neither a home nor a folder for temporary files can be written, as in a read-only container.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a home that cannot be written is no news: a temporary folder does as well
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except OSError:
        raise ConcordctError(
            "no folder for matplotlib's cache can be written, expected one; MPLCONFIGDIR or TMPDIR may name it"
        ) from None
    finally:
        logger.setLevel(level)


def new_figure(**options: Any) -> Any:
    """An empty figure that is drawn into memory; `options` as of `matplotlib.figure.Figure`.

    Raises
    ------
    ConcordctError : as `ready_to_draw`.
    """
    ready_to_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure
