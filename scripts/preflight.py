"""Says in one line each what this machine lacks for `make demo`, before anything is installed.

Needs nothing but an interpreter, and runs on Python 3.6 and later, so that an old one is told
so instead of meeting a syntax error. Exit code 1 when something is missing.
"""

import argparse
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from typing import Callable  # noqa: UP035 (not in collections.abc before 3.9)

OLDEST = (3, 10)
NEWEST = (3, 13)
OLDEST_MAKE = (3, 81)
GIB = 1 << 30
INSTALLED_GIB = 1  # once the environment is there: the demo's data and generations
CPU_BUILD_GIB = 3  # the environment with a CPU torch takes about 2, what pip downloads the rest
CUDA_BUILD_GIB = 8
TORCH_BUILDS = "README.md, 'Installation', says how to have the small CPU build"


class Missing(Exception):
    """Something that the demo cannot do without; the message says what to do."""


def interpreter_version(python: str) -> "tuple[int, int]":
    """Asks an interpreter for its version; one inside an environment may be broken."""
    code = "import sys; sys.stdout.write('%d.%d' % sys.version_info[:2])"
    try:
        major, minor = subprocess.check_output([python, "-c", code]).decode().split(".")
    except (OSError, subprocess.CalledProcessError):
        venv = os.path.dirname(os.path.dirname(python))
        raise Missing(
            f"{python} does not start, as after its folder is moved; remove it: rm -rf {venv}"
        ) from None
    return int(major), int(minor)


def check_python(python: str) -> str:
    """Python 3.10 to 3.13, else the name of a fitting one that is there."""
    version = interpreter_version(python)
    found = "{}.{}".format(*version)
    if OLDEST <= version <= NEWEST:
        return f"Python {found} ({python})"
    names = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    there = [name for name in names if shutil.which(name)]
    advice = (
        "use the one that is here: make demo PYTHON=" + there[0]
        if there
        else "install one of them, then: make demo PYTHON=python3.13"
    )
    raise Missing(f"Python 3.10 to 3.13 is needed, {python} is {found}; {advice}")


def check_venv(venv: str) -> str:
    """An environment that is there, or the modules that make one."""
    if os.path.exists(os.path.join(venv, "bin", "python")):
        return f"environment {venv} is there and is kept"
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise Missing(
                f"this Python has no module {module}; on Debian and Ubuntu install it with: "
                f"apt-get install python3-venv (or python3.{sys.version_info[1]}-venv)"
            )
    return f"environment {venv} will be made"


def installed_torch(venv: str) -> str:
    """The version of the torch inside `venv`, or an empty string."""
    pattern = os.path.join(venv, "lib", "python3*", "site-packages", "torch-*.dist-info")
    for folder in glob.glob(pattern):
        return os.path.basename(folder)[len("torch-") : -len(".dist-info")]
    return ""


def check_torch(venv: str, pyproject: str) -> str:
    """The torch that is there and whether pip will keep it."""
    found = installed_torch(venv)
    with open(pyproject, encoding="utf-8") as file:
        wanted = re.search(r'"torch>=(\d+\.\d+)', file.read())
    needed = wanted.group(1) if wanted else ""
    if found and (found + ".").startswith(needed + "."):
        return f"torch {found} is there and is kept"
    if found:
        return f"torch {found} in {venv} will be replaced by {needed}; {TORCH_BUILDS}"
    if not sys.platform.startswith("linux"):
        return "torch is not there: pip installs it"
    return "torch is not there: pip takes its default build, often a CUDA one; " + TORCH_BUILDS


def needed_gib(venv: str) -> "tuple[int, int]":
    """Space that must be free, and space that should be: with a CPU and with a CUDA torch."""
    if os.path.exists(os.path.join(venv, ".installed-demo")):
        return INSTALLED_GIB, INSTALLED_GIB
    if installed_torch(venv):
        return CPU_BUILD_GIB, CPU_BUILD_GIB
    may_be_cuda = sys.platform.startswith("linux")
    return CPU_BUILD_GIB, CUDA_BUILD_GIB if may_be_cuda else CPU_BUILD_GIB


def check_disk(folder: str, venv: str) -> str:
    """Enough free disk for the environment and the demo's data."""
    free = shutil.disk_usage(folder).free
    least, better = needed_gib(venv)
    line = f"{free / GIB:.1f} GiB of disk are free"
    if free < least * GIB:
        raise Missing(f"{line} here, {least} GiB are needed; free some")
    if free < better * GIB:
        return f"{line}: enough with a CPU torch, {better} GiB with a CUDA one; {TORCH_BUILDS}"
    return line


def check_make(version: str) -> str:
    """GNU make from 3.81 on, as macOS brings it."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST_MAKE:
        raise Missing(
            "GNU make 3.81 or newer is needed, found {}; install the package make".format(
                version or "another make"
            )
        )
    return f"GNU make {version}"


def report(check: "Callable[[], str]") -> bool:
    """Writes the line of one check; whether what it asks for is there."""
    try:
        sys.stdout.write(f"preflight ok       {check()}\n")
    except Missing as missing:
        sys.stdout.write(f"preflight MISSING  {missing}\n")
        return False
    return True


def main() -> int:
    """Runs every check; exit code 1 when something is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="folder of the environment")
    parser.add_argument("--make-version", default="4", help="make passes its own")
    arguments = parser.parse_args()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    venv_python = os.path.join(arguments.venv, "bin", "python")
    python = venv_python if os.path.lexists(venv_python) else sys.executable
    reports = [
        report(lambda: check_python(python)),
        report(lambda: check_venv(arguments.venv)),
        report(lambda: check_torch(arguments.venv, os.path.join(root, "pyproject.toml"))),
        report(lambda: check_disk(root, arguments.venv)),
        report(lambda: check_make(arguments.make_version)),
    ]
    return 0 if all(reports) else 1


if __name__ == "__main__":
    sys.exit(main())
