"""What the operating system gives: processes, files, logs, the card.

platform.py      whether this is Linux under Windows
card.py          whether there is an NVIDIA card, and whether its driver answers
needs.py         what the machine lacks, each with its remedy
disk_needs.py    what the disks lack
filesystems.py   on what kind of file system a folder lies
processes.py     names a process so that a reused id is not taken for it
parent_death.py  ends this process when its parent has ended
files.py         replaces a file as a whole
logs.py          one JSON object a line, in files that stay bounded
log_rotation.py  keeps the logs bounded that other programs write

`python -m deployments.host` answers the Makefile before any package is installed, so `__main__`,
platform, card, needs, disk_needs and filesystems import the standard library only, and run under
Python 3.9.
"""
