"""What may be asked at each address, and how a request is refused.

calls.py       the addresses, with the fields each takes
stream_end.py  tells a stream that is whole from one that broke
heartbeat.py   what a waiting stream sends
errors.py      all errors, with their status and code
asgi.py        the ASGI messages of a response
"""
