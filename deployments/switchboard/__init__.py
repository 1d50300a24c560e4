"""The one writer of residency: a single replica that all gateways and admins ask.

deployment.py  its methods, as gateways and admins call them
runner.py      carries out the decisions of the machine in `residency/`
replicas.py    scales the model servers' replicas, and asks them to start and stop engines
scaler.py      sets replica counts in Ray Serve
prestart.py    has a Ray worker process started before a replica needs it
messages.py    what the Switchboard and the gateways send each other
history.py     tickets and events
event_log.py   every event of the machine, on disk, so that an incident can be replayed
metrics.py     counts of switches, for Prometheus
errors.py      the Switchboard's refusals
state_file.py  the state that outlives a restart
"""
