"""The GPU's part on a machine without one: `make rehearse`.

driver.py              a stub of the driver's libraries (nvml.c, cuda.c), which a test changes
programs.py            what asks the driver, each as a process
place.py, studio.py    a server whose place is the stub's card, and what a user's programs do to it
cuda_wheel.py          the Python of vLLM's CUDA wheel, fetched once; cuda_site/ lets it run here
whole_config.py, memory_rule.py, standby_imports.py   run with it
"""
