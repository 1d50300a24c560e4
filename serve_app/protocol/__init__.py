"""What may be asked at each address, and how a request is refused.

calls.py       the addresses, with the body that each takes
openai.py      the bodies of OpenAI's addresses
anthropic.py   the bodies of Anthropic's addresses
fields.py      the kinds of fields, and what all bodies share
refused.py     the fields that are refused, and why
stream_end.py  tells a stream that is whole from one that broke
heartbeat.py   what a waiting stream sends
errors.py      all errors, with their status and code
asgi.py        the ASGI messages of a response
"""
