"""One model's replica: it starts the engine, asks it a known question, watches it, stops it.

deployment.py    the replica, as the Switchboard calls it
attempts.py      whether a load that failed is tried once more: pure
golden.py        verifies an engine by a question whose answer is known
golden_probe.py  the question for each task, and the comparison of answers: pure
watchdog.py      finds an engine that hangs
liveness.py      tells a slow engine from a dead one: pure
legacy_port.py   keeps a model's old port working, from when each model had its own
"""
