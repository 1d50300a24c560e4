"""One model's replica: it starts the engine, asks it a known question, watches it, stops it.

deployment.py    the replica, as the Switchboard calls it
attempts.py      whether a load that failed is tried once more: pure
golden.py        verifies an engine by a question whose answer is known
golden_probe.py  the question in each task's form
watchdog.py      finds an engine that hangs
liveness.py      tells slow from dead: pure
legacy_port.py   the port a model had when each had its own
"""
