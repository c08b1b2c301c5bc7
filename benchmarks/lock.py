"""Write requirements.lock: every package that `make demo` and `make test` install, with version and hashes.

    .venv/bin/python -m benchmarks.lock          (make lock; takes uv: pip install uv)

For Python 3.11 on Linux (x86-64), where torch is the build for processors alone that PyTorch's own index holds and pip
finds it, and for macOS. Elsewhere the Makefile falls back to the ranges of pyproject.toml, and says so.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
#: What torch for graphics cards brings along.
GRAPHICS = ("nvidia-", "triton", "cuda-")
HERE = "sys_platform == 'linux' and platform_machine == 'x86_64' and python_version == '3.11'"


def compiled(uv: str) -> str:
    """The lock as uv resolves it."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named, waiting = list(known["dependencies"]), ["dev"]
    while waiting:
        for one in known["optional-dependencies"][waiting.pop()]:
            own = re.fullmatch(r"concordct\[(.*)\]", one)
            waiting += own[1].split(",") if own else []
            named += [] if own else [one]
    requirements = "\n".join(dict.fromkeys(named))
    command = [uv, "pip", "compile", "-", "--universal", "--generate-hashes", "--python-version", "3.11", "--no-header"]
    command += ["--no-annotate", "-c", str(ROOT / "constraints.txt"), "--quiet"]
    return subprocess.run(command, input=requirements, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def for_processors(lock: str) -> str:
    """The lock without what graphics cards need; torch on Linux as the build without them."""
    entries = []
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        if entry.startswith(GRAPHICS):
            continue
        torch = re.match(r"torch==([\d.]+)", entry)
        if torch:
            version = f"{torch[1]}+cpu"
            entries.append(f"torch=={version} ; {HERE} \\\n    --hash=sha256:{wheel_digest(version)}")
            entry = entry.replace(" \\", " ; sys_platform == 'darwin' \\", 1)
        entries.append(entry)
    return "\n".join(entries) + "\n"


def wheel_digest(version: str) -> str:
    """SHA-256 of the wheel of torch that pip finds for this machine."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", place, f"torch=={version}"]
        subprocess.run(command, check=True)
        (wheel,) = Path(place).iterdir()
        return hashlib.sha256(wheel.read_bytes()).hexdigest()


def main() -> None:
    """Write the file."""
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("expected uv on the path, found none: pip install uv")
    lock = for_processors(compiled(uv))
    LOCK.write_text(f"# Written by `make lock`, see benchmarks/lock.py.\n{lock}")
    print(f"{LOCK.name}: {lock.count('==')} pins")


if __name__ == "__main__":
    main()
