"""Admits a request and relays it to the engine.

gateway.py             the gateway's state, kept in step with the Switchboard
admission.py           decides which requests are admitted, wait or are refused
relay.py               sends a request to the engine, and the engine's answer to the client
engine_errors.py       turns an engine's errors into errors for clients
switchboard_client.py  calls the Switchboard, and translates its errors
"""
