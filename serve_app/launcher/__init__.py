"""Starts and stops the server on this machine.

foreground.py       `llm-backend start --foreground`, and what the background start runs
background.py       `llm-backend start` and `stop`
pidfile.py          which server uses this home
preflight.py        what can be seen to be wrong before a start
private.py          keeps the server's files from other users
haproxy.py          Serve's HAProxy mode, with what it leaves open closed
haproxy_wrapper.py  mends HAProxy's configuration, then becomes HAProxy
ports.py            a free port
"""
