"""`python -m twotower`: the command line, wherever its script is installed."""

from __future__ import annotations

from twotower.cli.app import main

if __name__ == "__main__":
    main()
