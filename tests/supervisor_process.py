"""A supervisor of any processes: `python supervisor_process.py JSON`; imported by nobody."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import msgspec

from twotower.runtime.processes import ProcessSpec
from twotower.runtime.settings import RuntimeSettings
from twotower.runtime.supervisor import Supervisor


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = json.loads(sys.argv[1])
    settings = msgspec.convert(given["settings"], RuntimeSettings)
    table = [ProcessSpec(name, tuple(command)) for name, command in given["table"]]
    sys.exit(0 if Supervisor(Path(given["folder"]), settings, table).run() else 1)


if __name__ == "__main__":
    main()
