"""The card rehearsed on a machine without one: a stub of the driver's library, and the CUDA wheel's
own Python. See `driver.py` and `cuda_wheel.py`."""
