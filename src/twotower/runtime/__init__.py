"""A live day under one roof: `twotower up` keeps its processes alive and runs the nights.

`processes` says which commands run, `supervisor` keeps them running, `nights` decides when a
night is due and what became of it, `observing` says how everything stands. Nothing here trains,
serves or joins: each of these is a command of its own, in a process of its own, so that a
scheduler of another kind can run the same commands.
"""
