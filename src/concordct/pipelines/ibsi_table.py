"""IBSI's benchmark as a page: how many reference values are met, family by family, and each exception by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from concordct.radiomics.definitions.ibsi_reference import CONFIGURATIONS, Comparison, run_benchmark
from concordct.volumes.place import atomic_file


def write_ibsi_table(data: Path, output: Path, *, overwrite: bool = False) -> list[Comparison]:
    """Run IBSI-1 and write the table (Markdown).

    Parameters
    ----------
    data : IBSI-1's phantoms and `reference_values`.
    output : the page.

    Returns
    -------
    Every comparison, in the order of configurations and of IBSI's tables.

    Raises
    ------
    ConcordctError : a file of the benchmark is missing, or the output exists.
    """
    found = run_benchmark(data)
    with atomic_file(output, overwrite=overwrite) as aside:
        aside.write_text(ibsi_page(found), encoding="utf-8")
    return found


def ibsi_page(found: list[Comparison]) -> str:
    """The page's text."""
    families = list(dict.fromkeys(one.tag.split("_")[0] for one in found))
    total: Counter[tuple[str, str]] = Counter()
    met: Counter[tuple[str, str]] = Counter()
    for one in found:
        key = (one.configuration, one.tag.split("_")[0])
        total[key] += 1
        met[key] += one.within
    lines = [
        "# IBSI-1 reference values",
        "",
        "Written by `concordct ibsi DATA -o docs/ibsi.md`. Reference values and tolerances: Zwanenburg et al. 2020,",
        "doi:10.1148/radiol.2020191145. A value is met when it lies within the printed tolerance, or equals the",
        "reference in the three digits that IBSI prints. Configurations: the digital phantom; A to E, the CT phantom.",
        "",
        "| family | " + " | ".join(CONFIGURATIONS) + " |",
        "|---|" + "---|" * len(CONFIGURATIONS),
    ]
    for family in families:
        cells = [f"{met[name, family]}/{total[name, family]}" if total[name, family] else "" for name in CONFIGURATIONS]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    sums = [f"{sum(met[name, f] for f in families)}/{sum(total[name, f] for f in families)}" for name in CONFIGURATIONS]
    lines += ["| all | " + " | ".join(sums) + " |", "", "## Exceptions", ""]
    exceptions = [one for one in found if not one.within]
    if not exceptions:
        lines.append("None.")
    else:
        lines += ["| configuration | feature | found | reference | tolerance |", "|---|---|---|---|---|"]
        lines += [
            f"| {one.configuration} | {one.tag} | {one.value:.6g} | {one.reference:g} | {one.tolerance:g} |"
            for one in exceptions
        ]
    lines += [
        "",
        "Not computed, because IBSI prints no reference value for them: oriented minimum bounding box and minimum",
        "volume enclosing ellipsoid (`morph_vol_dens_ombb`, `morph_area_dens_ombb`, `morph_vol_dens_mvee`,",
        "`morph_area_dens_mvee`) and the area under the intensity-volume histogram (`ivh_auc`).",
        "",
    ]
    return "\n".join(lines)
