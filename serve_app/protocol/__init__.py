"""Defines the HTTP API: the routes to an engine, their request bodies, and all errors.

calls.py       the routes to an engine, with the body that each takes
openai.py      the request bodies of OpenAI's routes
anthropic.py   the request bodies of Anthropic's routes
fields.py      field types, and the base class of all bodies
refused.py     the fields that the gateway refuses, and why
stream_end.py  tells a finished stream from a broken one
heartbeat.py   the heartbeats of a stream that waits for its model
errors.py      all errors, with their status and code
asgi.py        the ASGI messages of a response
"""
