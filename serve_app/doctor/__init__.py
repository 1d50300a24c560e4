"""`llm-backend doctor`: what this machine is (gather), and what is wrong with it (checks)."""
