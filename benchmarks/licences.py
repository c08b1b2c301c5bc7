"""Write docs/licences.md: the licence of everything that `make demo` and `make test` install, as its own metadata says.

.venv/bin/python -m benchmarks.licences          (make licences)
"""

from __future__ import annotations

import re
from collections import Counter
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licences.md"
#: Licences that ask for more than a notice; a package that the product imports must not carry the strong ones.
#: Packages of several licences, of which the strong one concerns a part that is not used.
EXAMINED = {"docutils": "BSD and public domain; the GPL is that of an Emacs mode, which nothing imports"}
STRONG = re.compile(r"\bA?GPL\b|GNU (Affero )?General Public", re.IGNORECASE)
WEAK = re.compile(r"\bLGPL|\bMPL\b|Lesser General|Mozilla Public", re.IGNORECASE)


def licence_of(package: Distribution) -> str:
    """The licence in a few words: the SPDX expression, else the classifiers, else the first line of the text."""
    stated = package.metadata
    if stated.get("License-Expression"):
        return str(stated["License-Expression"])
    classes = [one.split(" :: ")[-1] for one in stated.get_all("Classifier") or [] if one.startswith("License ::")]
    classes = [one for one in classes if one != "OSI Approved"]
    if classes:
        return ", ".join(sorted(set(classes)))
    text = str(stated.get("License") or "not stated").strip().splitlines()
    return text[0][:60] if text else "not stated"


def names_locked() -> set[str]:
    """Names in the lock file, folded as indexes fold them."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {_folded(line.split("==")[0]) for line in lines if "==" in line and not line.startswith((" ", "#"))}


def _folded(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Write the page, and end with 1 where a strong copyleft is among what is installed."""
    locked = names_locked()
    found = {_folded(one.metadata["Name"]): one for one in distributions() if _folded(one.metadata["Name"]) in locked}
    rows = [(name, one.version, licence_of(one)) for name, one in sorted(found.items())]
    doubtful = [name for name, _, licence in rows if STRONG.search(licence) and not WEAK.search(licence)]
    strong = [name for name in doubtful if name not in EXAMINED]
    weak = [name for name, _, licence in rows if WEAK.search(licence)]
    page = (
        "# Licences of what is installed\n\nWritten by `make licences` from the packages' own metadata, for the pins "
    )
    page += f"of `requirements.lock` that are installed here ({len(rows)} of {len(locked)}).\n\n"
    page += f"Strong copyleft: {', '.join(strong) or 'none'}. Weak copyleft (used as it is, not changed): "
    page += f"{', '.join(weak) or 'none'}.\n\n"
    page += "".join(f"{name}: {EXAMINED[name]}.\n\n" for name in doubtful if name in EXAMINED)
    page += "astra-toolbox (GPL-3.0) is no dependency: a test and a benchmark compare with it where it is there.\n\n"
    page += "| package | version | licence |\n|---|---|---|\n"
    page += "".join(f"| {name} | {version} | {licence.replace('|', '/')} |\n" for name, version, licence in rows)
    PAGE.write_text(page)
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} packages; {Counter(licence for *_, licence in rows).most_common(3)}")
    if strong:
        raise SystemExit(f"strong copyleft among the dependencies: {', '.join(strong)}")


if __name__ == "__main__":
    main()
