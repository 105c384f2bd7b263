"""The event log: where every event waits, in order and durably, until it was learned from."""
