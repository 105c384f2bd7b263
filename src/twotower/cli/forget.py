"""`twotower events forget`: remove the events and examples that nobody can need any more."""

from __future__ import annotations

import time

from twotower.cli.options import DEFAULT_CONFIG, ConfigOption, DryRunOption, JsonOption
from twotower.cli.output import console, emit_json

__all__ = ["forget"]


def forget(
    dry_run: DryRunOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Remove old events and joined examples, never what the live generation may need.

    Example: twotower events forget --dry-run
    """
    from twotower.config import load_project
    from twotower.runtime.forgetting import forget_old

    forgotten = forget_old(load_project(config), int(time.time() * 1000), dry_run=dry_run)
    if as_json:
        emit_json(forgotten)
        return
    verb = "would be removed" if dry_run else "were removed, whole files and blocks of them"
    console.print(
        f"events before {forgotten.events_before:,} and examples before "
        f"{forgotten.examples_before:,} {verb}; events begin at {forgotten.events_begin:,}, "
        f"examples at {forgotten.examples_begin:,}; the rest is needed by "
        f"{', '.join(forgotten.needed_by)}, or is not old enough"
    )
