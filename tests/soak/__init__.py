"""A soak: a real server under mixed real clients, switches, kills and a busy machine, for as many
minutes as are asked for. Nothing may be lost, and nothing may grow: `python -m tests.soak`."""
