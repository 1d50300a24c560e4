"""What the operating system gives: processes, files, logs.

platform.py      whether this is Linux under Windows
processes.py     names a process so that a reused id is not taken for it
parent_death.py  ends this process when its parent has ended
files.py         replaces a file as a whole
logs.py          one JSON object a line, in files that stay bounded
log_rotation.py  keeps the logs bounded that other programs write
"""
