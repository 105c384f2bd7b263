"""Writes an event log, and the example log joined from its first half.

Every later version must read both and go on. Run it once when a format changes, before the change
is released, and commit the new folder:

    python tests/golden/make_examples.py tests/golden/examples-1
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from label_join_reference import random_log
from stored_events import store, without_repeats
from test_data_joiner import join
from test_data_label_join import as_tuples
from twotower.data.example_log import ExampleLog


def main() -> None:
    """Joins the first half, and notes what the whole will give."""
    folder, log = Path(sys.argv[1]), without_repeats(random_log(12, 200, text_ids=True))
    store(folder, log[:100])
    join(folder, None)
    store(folder, log[100:])
    for lock in [*folder.rglob(".*.lock"), *folder.rglob("*.lock")]:
        lock.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        copy = shutil.copytree(folder, Path(temporary) / "data")
        join(copy, None)
        whole = ExampleLog.open(copy)
        rows = as_tuples(whole.read(0, whole.end))
    (folder / "rows.json").write_bytes(msgspec.json.encode([str(row) for row in rows]) + b"\n")


if __name__ == "__main__":
    main()
