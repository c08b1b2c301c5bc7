"""What is imported when: help and a plain run stay quick only while nothing slow creeps in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from concordct.cli import main
from concordct.pipelines.calibrate import calibrate_pairs, pairs_of_paths
from concordct.volumes.files import write_volume_file
from learning import pair

#: What takes longer to import than help may take; and what a plain run of the closed-form path does without.
SLOW = (
    "numpy",
    "scipy",
    "pydicom",
    "SimpleITK",
    "pydantic",
    "yaml",
    "rich.markdown",
    "rich.progress",
    "multiprocessing",
)
#: Of the core, and needed by fits and manifests alone.
LATER = ("scipy.optimize", "concordct.volumes.manifest")
EXTRAS = ("torch", "ray", "astra", "monai", "matplotlib", "fsspec", "numba", "skimage", "pynetdicom", "starlette")


def test_help_imports_nothing_slow_and_a_plain_run_no_extra(tmp_path: Path) -> None:
    """Names, not times: --version and --help take 0.2 s of a processor, most of it the interpreter's and typer's."""
    code = (
        "import sys, concordct.cli as cli\nsys.argv = ['concordct', '--help']\n"
        f"try:\n    cli.main()\nexcept SystemExit:\n    print([m for m in {SLOW + EXTRAS} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
    soft, sharp = pair(0, size=96)
    for name, volume in (("soft", soft), ("sharp", sharp)):
        write_volume_file(tmp_path / f"{name}.nii.gz", volume)
    pairs = pairs_of_paths(tmp_path / "soft.nii.gz", tmp_path / "sharp.nii.gz")
    calibrate_pairs(pairs, tmp_path / "model", method="concord")
    code = (
        "import sys, concordct.cli as cli\n"
        f"sys.argv = ['concordct', 'standardize', {str(tmp_path / 'soft.nii.gz')!r}, '-m', {str(tmp_path / 'model')!r},"
        f" '-o', {str(tmp_path / 'out.nii.gz')!r}]\n"
        f"try:\n    cli.main()\nexcept SystemExit:\n    pass\nprint([m for m in {EXTRAS + LATER} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (tmp_path / "out.nii.gz").exists()
    assert found.stdout.splitlines()[-1] == "[]"


def test_one_line_leaves_the_next_its_verbs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("standardize", "measure"):
        monkeypatch.setattr(sys, "argv", ["concordct", verb, "--help"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        assert f"concordct {verb}" in capsys.readouterr().out
