"""The command line: one file a group of commands, each with a `register(app)`."""
