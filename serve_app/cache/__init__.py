"""Answers that are given again without an engine, and so without a switch to its model.

policy.py        what may be kept, route by route                       pure
key.py           the name under which it is kept                        pure
recording.py     what is kept, and how it is given again                pure
fingerprints.py  which weights and settings a model's answers come from
stores.py        where it is kept: memory, disk or Redis
guard.py         a store that fails or is slow costs next to nothing
shared_answer.py  what a client gets of a shared generation
flight.py        one look-up and one generation for all who ask the same
responses.py     the whole, as the routes use it
"""
