"""Reads a request's body, checks it, and brings it into the engine's form.

body.py             all steps, in order
reading.py          bytes to one JSON object, within the limits
normalizing.py      leaves out what no engine here knows or needs
fields.py           the fields of the route, and what they may hold
message_content.py  the parts of messages
images.py           pictures: their size, and fetching them
json_schema.py      schemas that the engine would compile
threads.py          work on large bodies, beside the event loop
"""
