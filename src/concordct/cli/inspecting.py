"""What lies under a path: scans, their geometry, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from concordct.cli.common import JsonOption, app, bar, cell, print_json, tables


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A file, folder or zip archive of CT scans.")],
    identify: Annotated[
        bool, typer.Option("--identify", help="Measure which kernels each scan looks like, by its edges and noise.")
    ] = False,
    index: Annotated[
        Path | None, typer.Option(help="Keep in this file what was read: the next look reads only what is new.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the CT series found: kernel, date, scanner, spacing, slices, and what is wrong with each.

    Example: `concordct inspect /data/exam`
    """
    from concordct.pipelines.inspect import describe
    from concordct.volumes.zipped import as_tree

    with as_tree(path) as tree, bar(quiet=as_json) as report:
        found = describe(
            tree, kernels=identify, index=index, progress=lambda done, total: report("reading headers", done, total)
        )
    if as_json:
        print_json(found)
        return
    about = "scanner, date, problems"
    table = Table(Column("scan", overflow="fold"), "kernel", "slices", "spacing z y x, mm", "thickness, mm", about)
    for scan in found["scans"]:
        origin = ", ".join(filter(None, (scan["scanner"], scan["date"])))
        like = ", ".join(f"{one['kernel']} ({one['distance']:.1f})" for one in scan.get("looks_like", ()))
        remarks = [*filter(None, (origin, like and f"looks like {like}"))]
        remarks += [f"{problem['message']} [{problem['code']}]" for problem in scan["problems"]] + scan["notes"]
        table.add_row(
            *(
                cell(text)
                for text in (
                    scan["path"],
                    scan["kernel"] or "?",
                    str(scan["shape"][0]),
                    " ".join(f"{d:.4g}" for d in scan["spacing_mm"]),
                    "?" if scan["slice_thickness_mm"] is None else f"{scan['slice_thickness_mm']:g}",
                    "\n".join(remarks) or "none",
                )
            )
        )
    console = tables()
    if found["scans"]:
        console.print(table)
    else:
        console.print(f"no scan found in {cell(str(path))}")
    for reason, count in found["set_aside"].items():
        console.print(f"set aside: {count} x {cell(reason)}")
