"""Where the weights lie, whether they are whole and safe, and how they get here.

checkpoint.py  finds and checks a model's checkpoint
shape.py       reads its layers and sizes: pure
families.py    what the architectures differ in: pure
quantization.py  how linear layers are stored: pure
vision.py      the vision towers that can be counted: pure
kv_cache.py    the size of a KV cache in vLLM's blocks: pure
remote.py      reads what the hub says of a checkpoint that is not here
safety.py      refuses code, pickles and links out of its folder
manifest.py    its files with their sizes and hashes
hub.py         downloads from the Hugging Face hub
pull.py        pulls a model at its pinned revision
demo.py        makes the demo models, for a machine without a GPU
demo_data/     the weights of the demo's vision model
"""
