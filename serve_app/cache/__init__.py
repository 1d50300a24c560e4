"""Answers again without an engine, and so without a switch to its model.

responses.py          the cache as the routes use it
shared_answer.py      one client's answer, kept or shared
shared_generation.py  one look-up and one generation for identical requests
recording.py          a kept answer, and how it is sent again: pure
policy.py             which requests are cacheable, route by route: pure
key.py                the key of a request: pure
fingerprints.py       the weights and settings that a model's answers come from
stores.py             memory, disk or Redis
guard.py              makes a store that fails or is slow cost next to nothing
"""
