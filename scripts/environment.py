"""The virtual environment that both commands share. Standard library only."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OLDEST, NEWEST = (3, 11), (3, 12)


def python() -> Path:
    """Return the interpreter of the virtual environment."""
    return VENV / "bin" / "python"


def ensure(*files: str) -> None:
    """Make `.venv` and install the requirement files, unless exactly these are installed already.

    Exits with a sentence when Python is too old or pip fails.
    """
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"Theodolite needs Python 3.11 or 3.12, this is {found} ({sys.executable}).")
    if not python().exists():
        print(f"Making {VENV} ...", flush=True)
        _make()
    for name in files:
        _install(ROOT / name)


def _make() -> None:
    try:
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    except subprocess.CalledProcessError:
        shutil.rmtree(VENV, ignore_errors=True)
        sys.exit(f"{sys.executable} cannot make a virtual environment with pip (Debian: apt-get install python3-venv).")


def _install(requirements: Path) -> None:
    stamp = VENV / f".{requirements.name}.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Installing {requirements.name} (with torch some 3 GB, a few minutes the first time) ...", flush=True)
    pip = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--requirement", str(requirements)], cwd=ROOT)
    if done.returncode:
        sys.exit(f"pip could not install {requirements.name}; its message is above. Mend that and run this again.")
    stamp.write_text(wanted)
