"""The trained LTDiff++ and DiffusionCT of the papers' table, and its rivals that gain on validation, in half precision,
into the package.

python -m benchmarks.papers_weights                  # after `make bench-papers` has trained the rows
python -m benchmarks.papers_weights --only pix2pix   # one of them

Each becomes a folder of `src/concordct/methods/weights`, which `concordct standardize -m NAME` finds. They know one
simulated kernel pair, and say so: in their card, and in a note with every result.
"""

from __future__ import annotations

import argparse

from benchmarks import papers_rivals
from benchmarks.papers_rows import DCT, LONG, ROWS, place_of, spent
from benchmarks.results import ROOT
from concordct.scanner.recipes import SOURCE, TARGET
from concordct.training.bundle import halved, load_bundle, save_bundle

#: Name in the package -> the row that it is.
SHIPPED = {"ltdiffpp": LONG, "diffusionct": DCT, **{name: row for row, (name, _) in papers_rivals.RIVALS.items()}}
WEIGHTS = ROOT / "src" / "concordct" / "methods" / "weights"
#: What the study of the leak says of a model, for its card.
NOTES = {
    "diffusionct": "Its latent moves nothing (docs/results/papers.md, the leak): the decoder reads the pixels, and the "
    "diffusion is idle."
}
#: Largest file of weights, bytes.
LARGEST = 16_000_000


def main() -> None:
    """Write every model whose training is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SHIPPED), choices=list(SHIPPED))
    for name in parser.parse_args().only:
        row = SHIPPED[name]
        place = place_of(row) if row in ROWS else papers_rivals.place(row)
        if not place.exists():
            print(f"{row}: not trained yet")
            continue
        if row not in ROWS and not papers_rivals.gains(row):
            print(f"{row}: below the input on validation, does not ship")
            continue
        bundle = load_bundle(place)
        caution = (
            f"trained on simulated scans of one kernel pair, {SOURCE} to {TARGET}: for studies of the method, "
            "not for patients' scans"
        )
        # Statistics of the latents stay whole: they are small, and what they scale is not.
        small = halved(bundle, info={"source_kernels": [SOURCE], "target_kernels": [TARGET], "caution": caution})
        card = (place / "docs" / "README.md").read_text(encoding="utf-8")
        card = card.replace("unnamed to unnamed", f"{SOURCE} to {TARGET}")
        if row in ROWS:
            minutes = sum(seconds for _, seconds in spent(row).values()) / 60
            card += f"\nTraining: {minutes:.1f} processor minutes of one thread.\n"
        card += f"\n**One simulated kernel pair only:** {caution}. Weights in half precision.\n"
        card += f"\n{NOTES[name]}\n" if name in NOTES else ""
        save_bundle(small, WEIGHTS / name, card=card, overwrite=True)
        size = (WEIGHTS / name / "models" / "model.safetensors").stat().st_size
        if size > LARGEST:
            raise SystemExit(f"{WEIGHTS / name}: expected at most {LARGEST} bytes of weights, found {size}")
        print(f"{WEIGHTS / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
