"""The operating system's side: processes, files, logs.

processes.py     identifies a process even if its id is used again
parent_death.py  ends this process when its parent has ended
files.py         replaces a file as a whole
logs.py          writes our logs as JSON lines, in files of bounded size
log_rotation.py  bounds the size of logs that other programs write
"""
