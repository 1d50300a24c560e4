"""Where the weights lie, whether they are whole and safe, and how they get here.

checkpoint.py  finds and checks a model's checkpoint
shape.py       reads its layers and sizes: pure
safety.py      refuses code, pickles and links out of its folder
manifest.py    its files with their sizes and hashes
hub.py         downloads from the Hugging Face hub
folder.py      copies from a folder of this machine, in place of the hub
pull.py        pulls a model at its pinned revision
demo.py        makes the demo models, for a machine without a GPU
demo_data/     the weights of the demo's vision model
"""
