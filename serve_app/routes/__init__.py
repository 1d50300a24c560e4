"""The HTTP routes, one file for each group.

inference.py     /v1/…, /health, /models
admin.py         /admin/…
event_stream.py  the server-sent events of /admin/events
logs.py          /admin/logs
metrics.py       /metrics
gauges.py        the gauges on /metrics: residency, requests, GPU
console.py       the web pages
openapi.py       the API description
params.py        reads headers, and the bodies of /admin
auth.py          decides which clients may use which routes
"""

from fastapi import APIRouter

from serve_app.routes import admin, console, inference, logs, metrics
from serve_app.routes.auth import Guard
from serve_app.routes.openapi import openapi_document

__all__ = ["Guard", "openapi_document", "routes"]

routes = APIRouter()
routes.include_router(inference.open_routes)
routes.include_router(inference.routes)
routes.include_router(admin.routes)
routes.include_router(metrics.routes)
routes.include_router(logs.routes)
routes.include_router(console.routes)
