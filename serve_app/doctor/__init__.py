"""`llm-backend doctor`: collects facts about this machine (gather), then judges them (checks)."""
