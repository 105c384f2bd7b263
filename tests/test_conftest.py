"""A skip is a failure where everything is required, and a named skip elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = {
    "inside": "import pytest\ndef test_it() -> None:\n    pytest.skip('no broker here')\n",
    "marked": "import pytest\n@pytest.mark.skip('no broker here')\ndef test_it() -> None: ...\n",
    "module": "import pytest\npytest.skip('no broker here', allow_module_level=True)\n",
    "expected": "import pytest\n@pytest.mark.xfail(reason='no broker here')\n"
    "def test_it() -> None:\n    assert False\n",
}


def run_pytest(folder: Path, text: str, **environment: str) -> tuple[int, str]:
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_skipping.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "-q", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=folder,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skip_fails_where_everything_is_required(kind: str, tmp_path: Path) -> None:
    returncode, output = run_pytest(tmp_path, SKIPS[kind], TWOTOWER_REQUIRE_ALL="1")
    assert returncode != 0
    assert "allows no skip" in output
    assert "no broker here" in output


def test_a_skip_is_named_elsewhere(tmp_path: Path) -> None:
    returncode, output = run_pytest(tmp_path, SKIPS["inside"], TWOTOWER_REQUIRE_ALL="")
    assert returncode == 0
    assert "no broker here" in output


def test_tests_stay_on_this_machine() -> None:
    import socket

    with socket.socket() as client, pytest.raises(AssertionError, match=r"192\.0\.2\.1"):
        client.connect(("192.0.2.1", 80))
