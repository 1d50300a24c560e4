"""What fits into the card's memory, and what is free of it.

plan.py       weights + overhead + KV cache against a card: pure
planner.py    plans for checkpoints and cards that are named
room.py       what this machine has for an engine
overhead.py   what an engine took beside its weights, measured at its start
monitor.py    refuses a load that cannot fit, and meters what an unload gave back
nvml.py       reads the card through NVIDIA's library
gpu_watch.py  watches the card's memory, and raises the alarm
gpu_wait.py   waits until an engine's memory is free
"""
