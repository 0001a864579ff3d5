#!/usr/bin/env python3
"""Install what the tests need, run the checks and every test. Standard library only.

python3 scripts/test.py [pytest arguments]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from environment import ROOT, ensure, python

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> int:
    """Return 0 when the checks and all the tests pass."""
    ensure("requirements.txt", "requirements-dev.txt")
    install_chromium()
    checks = subprocess.run([str(ROOT / "scripts" / "check")], cwd=ROOT)
    if checks.returncode:
        return checks.returncode
    return subprocess.run([str(python()), "-m", "pytest", *sys.argv[1:]], cwd=ROOT).returncode


def install_chromium() -> None:
    """Install Debian's chromium when there is no Chromium and this user may; otherwise say what to do."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        sys.exit("The browser tests need Chromium: install it (sudo apt-get install chromium) and run this again.")
    print("Installing chromium ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    for command in (["apt-get", "update", "-qq"], install):
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
