"""What a paper says of a calibrated model: a paragraph to paste, its references, and the items of reporting guidelines.

Only what model and evaluation know is filled in; the rest is marked as the author's to fill. Guidelines: CLEAR (Kocak
et al. 2023, doi:10.1186/s13244-023-01415-8), METRICS (Kocak et al. 2024, doi:10.1186/s13244-023-01572-w), IBSI
(Zwanenburg et al. 2020, doi:10.1148/radiol.2020191145) and RSNA's CLAIM (Mongan et al. 2020,
doi:10.1148/ryai.2020200029), by its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from concordct import __version__
from concordct.report.words import counted

#: What the author has to fill in.
YOURS = "[to be filled in]"

#: References by key: entry type and fields.
REFERENCES: dict[str, tuple[str, dict[str, str]]] = {
    "concordct": (
        "software",
        {
            "title": "concordct: bring CT scans into concord",
            "author": "{The concordct developers}",
            "version": __version__,
            "license": "Apache-2.0",
        },
    ),
    "Freirich2021": (
        "inproceedings",
        {
            "title": "A theory of the distortion-perception tradeoff in {Wasserstein} space",
            "author": "Freirich, Dror and Michaeli, Tomer and Meir, Ron",
            "booktitle": "Advances in Neural Information Processing Systems",
            "volume": "34",
            "year": "2021",
        },
    ),
    "Sanders2016": (
        "article",
        {
            "title": "Patient-specific quantification of image quality: an automated method for measuring spatial "
            "resolution in clinical {CT} images",
            "author": "Sanders, Jeremiah and Hurwitz, Lynne and Samei, Ehsan",
            "journal": "Medical Physics",
            "volume": "43",
            "year": "2016",
            "doi": "10.1118/1.4961984",
        },
    ),
    "Kocak2023": (
        "article",
        {
            "title": "{CheckList} for {EvaluAtion} of {Radiomics} research ({CLEAR}): a step-by-step reporting "
            "guideline for authors and reviewers endorsed by {ESR} and {EuSoMII}",
            "author": "Kocak, Burak and Baessler, Bettina and Bakas, Spyridon and others",
            "journal": "Insights into Imaging",
            "volume": "14",
            "pages": "75",
            "year": "2023",
            "doi": "10.1186/s13244-023-01415-8",
        },
    ),
    "Kocak2024": (
        "article",
        {
            "title": "{METhodological RadiomICs Score} ({METRICS}): a quality scoring tool for radiomics research "
            "endorsed by {EuSoMII}",
            "author": "Kocak, Burak and Akinci D'Antonoli, Tugba and Mercaldo, Nathaniel and others",
            "journal": "Insights into Imaging",
            "volume": "15",
            "pages": "8",
            "year": "2024",
            "doi": "10.1186/s13244-023-01572-w",
        },
    ),
    "Mongan2020": (
        "article",
        {
            "title": "Checklist for {Artificial Intelligence in Medical Imaging} ({CLAIM}): a guide for authors and "
            "reviewers",
            "author": "Mongan, John and Moy, Linda and Kahn, Jr., Charles E.",
            "journal": "Radiology: Artificial Intelligence",
            "volume": "2",
            "number": "2",
            "pages": "e200029",
            "year": "2020",
            "doi": "10.1148/ryai.2020200029",
        },
    ),
    "Lin1989": (
        "article",
        {
            "title": "A concordance correlation coefficient to evaluate reproducibility",
            "author": "Lin, Lawrence I-Kuei",
            "journal": "Biometrics",
            "volume": "45",
            "number": "1",
            "pages": "255--268",
            "year": "1989",
            "doi": "10.2307/2532051",
        },
    ),
    "Zwanenburg2020": (
        "article",
        {
            "title": "The {Image Biomarker Standardization Initiative}: standardized quantitative radiomics for "
            "high-throughput image-based phenotyping",
            "author": "Zwanenburg, Alex and Valli{\\`e}res, Martin and Abdalah, Mahmoud A. and others",
            "journal": "Radiology",
            "volume": "295",
            "number": "2",
            "pages": "328--338",
            "year": "2020",
            "doi": "10.1148/radiol.2020191145",
        },
    ),
}

#: What each method does, in a sentence, and whom it follows.
METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "concord": (
        "The transfer function between the two kernels was estimated from the pair; where the coherence of texture "
        "allows, the noise that the source holds was amplified to the target's power (the optimal transport between "
        "Gaussian textures), and noise of the target's spectrum and local level was drawn only for what is left",
        ("Freirich2021",),
    ),
    "spectral": (
        "The transfer function between the two kernels was estimated and applied in the frequency domain, and noise "
        "with the spectrum of what it leaves unexplained was drawn with a fixed seed",
        (),
    ),
}


@dataclass(frozen=True)
class MethodsText:
    """What `describe` and the page of an evaluation give.

    Attributes
    ----------
    paragraph : English prose.
    items : (guideline, item, what is known of it).
    bibtex : entries of all works that paragraph and items name.
    """

    paragraph: str
    items: tuple[tuple[str, str, str], ...]
    bibtex: str

    def markdown(self) -> str:
        """All of it as one page."""
        rows = "\n".join(f"| {guideline} | {item} | {text} |" for guideline, item, text in self.items)
        return (
            f"{self.paragraph}\n\n| guideline | item | reported |\n|---|---|---|\n{rows}\n\n"
            f"```bibtex\n{self.bibtex}```\n"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"paragraph": self.paragraph, "items": [list(item) for item in self.items], "bibtex": self.bibtex}


def methods_text(metadata: Mapping[str, Any], *, sha256: str, results: Mapping[str, Any] | None = None) -> MethodsText:
    """The methods section of a study that used a model.

    Parameters
    ----------
    metadata : of the model's bundle: method, limits, and `info` with kernels, counts and pixel size.
    sha256 : identity of the model.
    results : of `evaluate`, where the text is to say how the model was judged, too.
    """
    info, method = metadata["info"], str(metadata["method"])
    kernels = ["/".join(info.get(f"{side}_kernels", [])) or YOURS for side in ("source", "target")]
    sentence, follows = METHODS.get(method, (f"A model of the method {method} was trained on the pairs", ()))
    limits = metadata.get("limits") or {}
    half = limits.get("half_lp_cm")
    lost = limits.get("noise_share_above_half")
    keys = ("concordct", *follows, "Sanders2016")
    parts = [
        f"CT images reconstructed with kernel {kernels[0]} were standardized to kernel {kernels[1]} before feature "
        f"extraction with concordct {__version__} (method {method}, model {sha256[:12]}), calibrated {_data(info)}.",
        f"{sentence}{_cited(follows)}.",
    ]
    if half is not None:
        parts.append(
            f"Above {half:.1f} lp/cm less than half of the target's power follows from the source"
            + ("" if lost is None else f"; {lost:.1%} of the target's noise power lies there")
            + ", so detail beyond this frequency is texture of the right statistics and not anatomy."
        )
    checked = (results or {}).get("self_check") or {}
    failed = f"{checked['failed']} of {checked['scans']}" if checked else YOURS
    parts.append(
        "Before standardization each scan was compared with the calibration by the resolution at its skin "
        "[@Sanders2016] and by its noise spectrum, and each result was taken back through the inverse transfer; scans "
        f"that failed either check: {failed}."
    )
    if results is not None:
        parts.append(_judged(results))
        keys = (*keys, "Lin1989")
    items = _items(info, method, kernels, results or {})
    return MethodsText(" ".join(parts), items, bibtex((*keys, *GUIDELINES)))


def _judged(results: Mapping[str, Any]) -> str:
    """How and on what the model was judged, and what came out."""
    inputs, agreement = results["inputs"], results.get("agreement")
    origin = (results.get("provenance") or {}).get("simulated_or_real")
    said = [f"The result was judged against the target on {_judged_on(inputs)}"]
    if origin:
        said[0] += f" ({origin} data)"
    if agreement:
        classes = ", ".join(
            f"{row['class']} {row['source_ccc_mean']:.2f} to {row['standardized_ccc_mean']:.2f}"
            for row in agreement["per_class"]
            if row["source_ccc_mean"] is not None and row["standardized_ccc_mean"] is not None
        )
        said.append(
            f"agreement of features ({agreement['settings']}) was measured by Lin's concordance correlation "
            f"coefficient [@Lin1989], by feature and then averaged by class, before and after: {classes or YOURS}"
        )
    seen = results.get("in_sample")
    if seen:
        said.append(f"this is no test of generalization ({seen['said'].rstrip('.')})")
    return "; ".join(said) + "."


#: Keys of the guidelines that items are named after.
GUIDELINES = ("Kocak2023", "Kocak2024", "Zwanenburg2020", "Mongan2020")


def _data(info: Mapping[str, Any]) -> str:
    if info.get("tables"):
        return "from tables of MTF and noise power spectrum"
    if info.get("unpaired"):
        return f"from {info['scans'][0]} and {info['scans'][1]} unpaired scans"
    pixels = info.get("pixel_mm") or ()
    scans, slices = (counted(info.get(key, YOURS), what) for key, what in (("pairs", "scan"), ("slices", "slice")))
    text = f"on {scans} reconstructed with both kernels ({slices}"
    if info.get("slice_thickness_mm"):
        text += f", {info['slice_thickness_mm']:g} mm thick"
    if len(set(pixels)) == 1 and pixels:
        text += f", pixels of {pixels[0]:.3g} mm"
    return text + ")"


def _judged_on(inputs: Mapping[str, Any]) -> str:
    return f"{counted(inputs['slices'], 'slice')} of {counted(inputs['subjects'], 'subject')}"


def _cited(keys: Sequence[str]) -> str:
    return f" [{'; '.join('@' + key for key in keys)}]" if keys else ""


def _items(
    info: Mapping[str, Any], method: str, kernels: Sequence[str], results: Mapping[str, Any]
) -> tuple[tuple[str, str, str], ...]:
    made = f"kernel {kernels[0]} standardized to {kernels[1]}, {method}, {_data(info)}"
    code = f"concordct {__version__}, Apache-2.0"
    agreement = results.get("agreement") or {}
    measured = agreement.get("settings", YOURS)
    judged = YOURS
    if results:
        judged = f"judged on {_judged_on(results['inputs'])}"
        if results.get("in_sample"):
            judged += f"; not independent: {results['in_sample']['said']}"
        judged += f"; other data: {YOURS}"
    seed = (results.get("provenance") or {}).get("seed")
    return (
        ("CLEAR", "image acquisition details", f"kernels {kernels[0]} and {kernels[1]}; scanner and dose: {YOURS}"),
        ("CLEAR", "image pre-processing details", made),
        ("CLEAR", "resampling method and its parameters", "none by concordct: the pixels stay as they are"),
        ("CLEAR", "discretization method and its parameters", measured),
        ("CLEAR", "code and model availability", f"{code}; the model: {YOURS}"),
        ("METRICS", "6 imaging protocol with acquisition parameters", YOURS),
        ("METRICS", "11 image preprocessing, described", made),
        ("METRICS", "12 standardized feature extraction software", "features of concordct meet IBSI-1; else " + YOURS),
        ("METRICS", "13 feature extraction parameters", measured),
        ("METRICS", "21 uncertainty", "intervals: bootstrap over subjects"),
        ("IBSI", "image processing before extraction", made),
        ("IBSI", "interpolation, re-segmentation, discretization", measured),
        ("CLAIM", "9 data preprocessing steps", made),
        ("CLAIM", "12 de-identification", "the model keeps digests of UIDs, no UID and nothing of a patient"),
        ("CLAIM", "21 level at which partitions are disjoint", judged),
        ("CLAIM", "22 detailed description of the model", f"{METHODS.get(method, (method,))[0]}"),
        ("CLAIM", "23 software", code + ("" if seed is None else f", seed {seed}")),
        ("CLAIM", "28 metrics of performance", "CCC per feature, relative error, RMSE, SSIM, noise power by band"),
        ("CLAIM", "32 test on external data", YOURS),
    )


def bibtex(keys: Sequence[str]) -> str:
    """Entries of `REFERENCES`, each once, in the order of the keys."""
    entries = []
    for key in dict.fromkeys(keys):
        kind, fields = REFERENCES[key]
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
        entries.append(f"@{kind}{{{key},\n{lines}}}\n")
    return "\n".join(entries)
