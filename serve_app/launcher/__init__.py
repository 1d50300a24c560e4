"""Starts and stops the server on this machine.

foreground.py       `llm-backend start --foreground`, and what the background start runs
background.py       `llm-backend start` and `stop`
pidfile.py          which server uses this home, and stopping exactly that server
preflight.py        checks made before anything starts
private.py          keeps the server's files from other users
haproxy.py          Serve's HAProxy mode, with the gaps that Ray leaves in it closed
haproxy_wrapper.py  patches HAProxy's configuration, then becomes HAProxy
ports.py            finds a free port
"""
