"""Reads the body of a request, checks it, and turns it into the request for the engine.

body.py             all steps of the check, in order
reading.py          turns bytes into one JSON object, within the limits
names.py            a model's own name for its aliases, and the parameters of its variants
normalizing.py      drops the fields that no engine here knows or needs
fields.py           checks the fields of the body, and counts against the limits
message_content.py  checks the parts of messages, and finds their pictures
images.py           checks pictures, and fetches them from trusted hosts
json_schema.py      checks the schemas that the engine would compile
threads.py          works on large bodies in a thread
"""
