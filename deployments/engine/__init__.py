"""The processes of vLLM. Its modules are programs too, so importing this package imports none.

process.py      starts one engine, and sees to its end
args.py         the command line of vLLM's server
environment.py  what the processes of an engine inherit
flag_check.py   has vLLM check the settings that only it knows
main.py         the engine itself: vLLM's own server on a Unix socket
supervisor.py   the engine's parent: ends it with all its children
forkserver.py   a process that has vLLM imported, and forks engines
standby.py      whether engines are forked on this machine
imports.py      the modules of the last engines, for the fork server to import
load_steps.py   the seconds of a load's parts, from the engine's log
tokenizers.py   tokenizers read ahead, in the fork server
client.py       HTTP to an engine's socket
events.py       what an engine reports while it starts and runs
gpu_lock.py     the lock that only one engine at a time can hold
site/           `sitecustomize`, which every engine process runs first
"""
