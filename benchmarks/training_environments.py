"""The other systems' virtual environments: made once, below one folder, by pip.

A system that cannot be installed is a line with its reason, never a missing one.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

__all__ = ["PEER_PACKAGES", "environment_python"]

PEER_PACKAGES: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "tfrs": (("tensorflow-cpu>=2.19,<2.22", "absl-py"),
             ("tf-keras>=2.19,<2.22", "tensorflow-recommenders==0.7.7")),
    "rechub": (("torch>=2.13,<2.14", "numpy", "pandas", "scikit-learn", "tqdm"),
               ("torch-rechub==0.9.0",)),
    "qdrant": (("qdrant-client>=1.17,<2", "numpy"), ()),
}  # fmt: skip
"""What pip installs, and then what it installs without what that asks for: TF-Keras and TensorFlow
Recommenders ask for a second, larger build of TensorFlow."""


def environment_python(name: str, folder: Path) -> Path:
    """Return the Python of the peer's environment, which is made where it is missing.

    Raises:
        RuntimeError: pip could not install it; the message is pip's last line.
    """
    home = folder / name
    python = home / "bin" / "python"
    if (home / "installed").exists():
        return python
    venv.create(home, with_pip=True, clear=True)
    usual, without_dependencies = PEER_PACKAGES[name]
    _pip(python, *usual)
    if without_dependencies:
        _pip(python, "--no-deps", *without_dependencies)
    (home / "installed").touch()
    return python


def _pip(python: Path, *words: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *words]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        lines = [line for line in found.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
        raise RuntimeError(f"not installed: {lines[-1][:200]} (Python {sys.version.split()[0]})")
