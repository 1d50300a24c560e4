"""The HTTP addresses, one file for each group.

inference.py     /v1/…, /health, /models
admin.py         /admin/…
event_stream.py  the events of /admin/events
logs.py          /admin/logs
metrics.py       /metrics
gauges.py        what is so just now, on that page
console.py       the web page
openapi.py       the API's description
params.py        headers, and the bodies of /admin
auth.py          who may do what
"""
