"""The operating system's side: processes, files, logs, the card.

platform.py      whether this is Linux under Windows
card.py          whether there is an NVIDIA card, and whether its driver answers
needs.py         what the machine lacks, each with its remedy
disk_needs.py    what the disks lack
filesystems.py   on what kind of file system a folder lies
processes.py     identifies a process even if its id is used again
parent_death.py  ends this process when its parent has ended
files.py         replaces a file as a whole
logs.py          writes our logs as JSON lines, in files of bounded size
log_rotation.py  bounds the size of logs that other programs write

`python -m deployments.host` answers the Makefile before any package is installed, so `__main__`,
platform, card, needs, disk_needs and filesystems import the standard library only, and run under
Python 3.9.
"""
