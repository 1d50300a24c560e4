"""What runs on the cluster. It imports nothing of `serve_app`.

switchboard/   decides which model is resident, and carries the decision out
model_server/  one model's replica: starts its engine, verifies it, watches it
memory/        what fits into the card's memory, and what is free of it
checkpoints/   where the weights lie, whether they are whole and safe, how they get here
engine/        the processes of vLLM: one engine, its supervisor, the fork server
host/          what the operating system gives: processes, files, logs
residency/     who may hold the GPU: a pure state machine
settings/      `configs/` and the environment, checked and frozen
"""
