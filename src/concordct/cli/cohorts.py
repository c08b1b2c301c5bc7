"""Paired data: simulated cohorts, the public archive, and folders of one's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from concordct.cli.common import (
    FAILED,
    AddressOption,
    EngineChoice,
    EngineOption,
    FramesOption,
    JsonOption,
    SeedOption,
    ShardOption,
    Verbs,
    WorkersOption,
    app,
    bar,
    echo,
    engine_of,
    note,
    print_json,
    tell_share,
    warn,
)
from concordct.errors import ConcordctError

cohort_app = typer.Typer(
    cls=Verbs,
    help="Cohorts of real scans: pairs of kernels from the public archive or a folder, patients of OSIC.",
    no_args_is_help=True,
)
app.add_typer(cohort_app, name="cohort")


class SubjectChoice(StrEnum):
    """Who is scanned."""

    phantom = "phantom"
    patients = "patients"
    fibrosis = "fibrosis"


class FormatChoice(StrEnum):
    """What simulated scans are written as."""

    dicom = "dicom"
    nifti = "nifti"


class GeometryChoice(StrEnum):
    """Geometry of the projections."""

    fan = "fan"
    parallel = "parallel"


OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the cohort.")]


@app.command()
def simulate(
    output: OutputOption,
    subjects: Annotated[SubjectChoice | None, typer.Argument(help="Who is scanned; or name a --recipe.")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="Kernels, the source first; once for each.")] = None,
    slice_thickness: Annotated[list[float] | None, typer.Option(help="mm; once for each.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A cohort by name: ltdiffpp, diffusionct or small.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Subjects.")] = 1,
    slices: Annotated[
        int | None, typer.Option(min=1, help="Slices around the first nodule; the whole chest without.")
    ] = None,
    matrix: Annotated[int, typer.Option(help="Rows and columns of a slice.")] = 512,
    pixel_mm: Annotated[float, typer.Option(help="Edge of a pixel, mm.")] = 0.75,
    mas: Annotated[float | None, typer.Option(help="Exposure, mAs; drawn for each scan without.")] = None,
    kvp: Annotated[float | None, typer.Option(help="Tube voltage, kV; drawn for each scan without.")] = None,
    geometry: Annotated[GeometryChoice, typer.Option(help="How rays run.")] = GeometryChoice.fan,
    split: Annotated[str, typer.Option(help="Split of the subjects in the manifest.")] = "train",
    scans: Annotated[int, typer.Option(min=1, help="Raw data sets of each subject, each with its own noise.")] = 1,
    weeks: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Between the visits of patients with fibrosis, shortest and longest; about a year without."),
    ] = None,
    file_format: Annotated[FormatChoice, typer.Option("--format", help="How scans are written.")] = FormatChoice.dicom,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    engine: EngineOption = EngineChoice.local,
    address: AddressOption = None,
    shard: ShardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Scan digital patients or the chest phantom, reconstruct with several kernels, write pairs.csv. Resumes.

    Example: `concordct simulate patients -n 3 --kernel Br40 --kernel Bl64 --slice-thickness 1 --seed 7 -o cohort`

    `fibrosis` draws patients with pulmonary fibrosis at two visits, with lung-function tests, for `train ciresdiff`.
    """
    from concordct.pipelines import simulate as pipeline

    if (subjects is None) == (recipe is None):
        raise ConcordctError("expected either subjects or --recipe, found " + ("both" if recipe else "neither"))
    if weeks is not None and subjects is not SubjectChoice.fibrosis:
        raise ConcordctError("expected --weeks for drawn patients with fibrosis alone")
    if subjects is SubjectChoice.fibrosis:
        if kernel or len(slice_thickness or ()) != 1:
            raise ConcordctError("expected one --slice-thickness and no --kernel for drawn patients with fibrosis")
        assert slice_thickness is not None
        with bar(quiet=as_json) as report:
            cohort = pipeline.simulate_fibrosis(
                output,
                count=count,
                slice_thickness_mm=slice_thickness[0],
                pixel_mm=pixel_mm,
                seed=seed,
                weeks_between=weeks,
                workers=workers,
                progress=lambda done, total: report("patients", done, total),
            )
        if as_json:
            print_json({"cohort": str(cohort), "subjects": count})
        else:
            echo(f"{count} patients, each at two visits: {cohort}")
        return
    if recipe is not None:
        jobs = pipeline.plan_recipe(recipe, seed=seed)
    else:
        assert subjects is not None
        jobs = pipeline.plan_simulation(
            subjects.value,
            kernels=kernel or (),
            slice_thickness_mm=slice_thickness or (),
            seed=seed,
            count=count,
            slices=slices,
            matrix=matrix,
            pixel_mm=pixel_mm,
            mas=mas,
            kvp=kvp,
            geometry=geometry.value,
            split=split,
            scans=scans,
        )
    with bar(quiet=as_json) as report:
        found = pipeline.simulate(
            jobs,
            output,
            file_format=file_format.value,
            engine=engine_of(workers, engine, address, shard),
            progress=lambda done, total: report("slices", done, total),
        )
    if as_json:
        print_json(
            {
                "manifest": None if found.manifest is None else str(found.manifest),
                "scans": found.scans,
                "made": found.made,
                "slices": found.slices,
                "warnings": list(found.warnings),
            }
        )
        return
    for warning in found.warnings:
        warn("note", warning)
    if found.manifest is None:
        tell_share(shard, len(jobs) - found.scans, "the manifest")
        return
    echo(f"{found.scans} scans ({found.made} made now), {found.slices} slices a kernel: {found.manifest}")


def _kernels(kernel: list[str]) -> tuple[str, str]:
    if len(kernel) != 2 or kernel[0] == kernel[1]:
        raise ConcordctError(f"expected two different kernels, source first, found {', '.join(kernel) or 'none'}")
    return kernel[0], kernel[1]


class RelationChoice(StrEnum):
    """How series belong together."""

    pairs = "pairs"
    repeats = "repeats"
    scans = "scans"


@cohort_app.command()
def idc(
    name: Annotated[
        str,
        typer.Argument(help="nlst-pairs, qiba-1c, ct4harmonization, rider-lung, or any collection of the archive."),
    ],
    output: OutputOption,
    kernel: Annotated[
        list[str] | None, typer.Option(help="As the archive names it; for pairs twice, the source first.")
    ] = None,
    vendor: Annotated[str | None, typer.Option(help="Part of the manufacturer's name.")] = None,
    scanner: Annotated[str | None, typer.Option(help="Part of the scanner's model name.")] = None,
    slice_thickness: Annotated[list[float] | None, typer.Option(help="Of the slices, mm; one of those given.")] = None,
    dates: Annotated[
        tuple[str, str] | None, typer.Option(help="First and last study date, YYYY-MM-DD YYYY-MM-DD.")
    ] = None,
    relation: Annotated[
        RelationChoice | None, typer.Option(help="How series belong together; a preset says it itself.")
    ] = None,
    count: Annotated[int | None, typer.Option("-n", min=1, help="Pairs, subjects or scans; all without.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what is missing and verify it.")] = False,
    most_gb: Annotated[float, typer.Option(help="Refuse to fetch more, GB.", min=0)] = 50.0,
    index: Annotated[
        Path | None, typer.Option(help="The archive's idc_index.parquet; the one installed with idc-index without.")
    ] = None,
    ct_index: Annotated[
        Path | None,
        typer.Option(help="The archive's ct_index.parquet: kernels and thicknesses as headers have them."),
    ] = None,
    fetch_ct_index: Annotated[
        bool, typer.Option("--fetch-ct-index", help="Fetch the archive's ct_index first and go by it.")
    ] = False,
    endpoint: Annotated[
        str | None, typer.Option(help="Address of an S3-compatible server; the archive's public one without.")
    ] = None,
    allow: FramesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Select scans from the Imaging Data Commons by its index; fetch them where there is a network.

    Example: `concordct cohort idc nlst-pairs --kernel B50f --kernel B30f -n 100 -o nlst`

    Without --download it only says what there is: number, split by patient, GB, licence, in OUTPUT/selection.json.
    """
    from concordct.pipelines import archive
    from concordct.pipelines.archive_series import Wanted
    from concordct.pipelines.archive_transfer import ENDPOINT

    if set(allow or ()) - {"frames"}:
        raise ConcordctError(f"expected --allow frames, found {', '.join(allow or ())}")
    wanted = Wanted(tuple(kernel or ()), vendor, scanner, tuple(slice_thickness or ()), dates)
    preset = archive.preset_of(name, None if relation is None else relation.value)
    if fetch_ct_index:
        ct_index = archive.fetch_ct_index()
    selection = archive.select(preset, wanted, count=count, index=index, ct_index=ct_index)
    said = (
        f"{len(selection.groups)} {preset.relation} of {preset.collection}, {len(selection.series)} series, "
        f"{selection.size_gb:,.1f} GB, licence {', '.join(selection.licences)}"
    )
    if not download:
        path = archive.write_selection(selection, output)
        if as_json:
            print_json(
                {
                    "selection": str(path),
                    "relation": preset.relation,
                    "groups": len(selection.groups),
                    "size_gb": round(selection.size_gb, 3),
                    "licences": list(selection.licences),
                    "splits": dict(selection.splits),
                }
            )
        else:
            splits = ", ".join(f"{number} {split}" for split, number in selection.splits.items())
            echo(f"{said} ({splits}): {path}")
        return
    if not as_json:
        note(said)
    with bar(quiet=as_json) as report:
        found = archive.fetch_cohort(
            selection,
            output,
            most_gb=most_gb,
            endpoint=endpoint or ENDPOINT,
            allow=frozenset(allow or ()),
            progress=lambda done, total: report("series", done, total),
        )
    _print_cohort(found, output, as_json, what=preset.relation)


@cohort_app.command()
def folder(
    path: Annotated[Path, typer.Argument(help="Searched to its depths.")],
    output: OutputOption,
    kernel: Annotated[list[str], typer.Option(help="Two kernels as the headers name them, the source first.")],
    allow: FramesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the pairs that lie in a folder: one acquisition in two kernels, geometry and content verified.

    Example: `concordct cohort folder /data/exams --kernel B30f --kernel B70f -o pairs`
    """
    from concordct.pipelines.cohort import cohort_folder

    if set(allow or ()) - {"frames"}:
        raise ConcordctError(f"expected --allow frames, found {', '.join(allow or ())}")
    source, target = _kernels(kernel)
    with bar(quiet=as_json) as report:
        found = cohort_folder(
            path,
            source_kernel=source,
            target_kernel=target,
            output=output,
            allow=frozenset(allow or ()),
            progress=lambda done, total: report("reading headers", done, total),
        )
    _print_cohort(found, output, as_json)


def _print_cohort(found: Any, output: Path, as_json: bool, *, what: str = "pairs") -> None:
    if as_json:
        print_json(
            {
                "manifest": None if found.manifest is None else str(found.manifest),
                "pairs": found.pairs,
                "failures": [{"pair": pair, "reason": reason} for pair, reason in found.failures],
                "splits": dict(found.splits),
                "size_mb": found.size_mb,
                "licences": list(found.licences),
            }
        )
    else:
        for pair, reason in found.failures:
            warn("left out", f"{pair}: {reason}")
        size = f", {found.size_mb:,.0f} MB, licence {', '.join(found.licences)}" if found.size_mb else ""
        splits = f" ({', '.join(f'{count} {name}' for name, count in found.splits.items())})" if found.splits else ""
        echo(f"{found.pairs} {'pairs' if what == 'pairs' else 'scans'}{splits}{size}: {found.manifest or output}")
    if found.failures and not found.pairs:
        raise typer.Exit(FAILED)
