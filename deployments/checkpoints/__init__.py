"""Finds, checks and downloads the models' weights.

checkpoint.py    finds and checks a model's checkpoint
shape.py         reads a model's layers and sizes: pure
families.py      what architectures differ in, beyond their numbers: pure
kv_cache.py      the size of a KV cache, for layers of any kind: pure
quantization.py  how linear layers are stored: pure
vision.py        the vision towers that can be counted: pure
remote.py        what the hub says of a checkpoint that is not here
safety.py        refuses code, pickles, and links out of the checkpoint's folder
manifest.py      a checkpoint's files with their sizes and hashes
hub.py           downloads from the Hugging Face hub
folder.py        copies from a folder of this machine, in place of the hub
pull.py          pulls a model at its pinned revision
demo.py          makes the demo models, for a machine without a GPU
demo_data/       the weights of the demo's vision model
"""
