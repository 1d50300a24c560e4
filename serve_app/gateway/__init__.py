"""Admits a request and relays it to the engine.

gateway.py             the gateway's state, kept in step with the Switchboard
admission.py           who is admitted, and who waits: first come, first served
relay.py               sends a request to the engine and its answer to the client
engine_errors.py       an engine's errors in the caller's words
switchboard_client.py  the Switchboard, as routes ask it
"""
