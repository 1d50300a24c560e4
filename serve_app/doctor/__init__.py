"""`llm-backend doctor`: collects facts about this machine (gather), then judges them (checks).

gather.py       looks at the machine
facts.py        what it found, as values
gpu_checks.py   checks of the card and its software: pure
wsl_checks.py   checks of Linux under Windows: pure
host_checks.py  checks of the rest of the machine: pure
report.py       all checks, as lines or JSON
"""
