"""On every engine process's PYTHONPATH: Python runs the `sitecustomize` in it at start."""
