"""What fits into the card's memory, and what is free of it.

plan.py           weights + overhead + KV cache against a card: pure
warm.py           how many engines may sleep beside the one that is awake: pure
planner.py        plans for checkpoints and cards that are named
room.py           what this machine has for an engine
engine_memory.py  sizes an engine by what is free as it starts, and measures what it holds
overhead.py       what engines took beside weights and KV cache
monitor.py        refuses a load that cannot fit, and meters what an unload gave back
nvml.py           reads the card through NVIDIA's library
cuda_total.py     how much of a card's memory CUDA gives out
gpu_watch.py      watches the card's memory, and raises the alarm
gpu_wait.py       waits until an engine's memory is free
"""
