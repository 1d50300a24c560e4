"""What is known, logged and counted of requests.

context.py         what is known of the current request
middleware.py      names, logs and counts each request
metrics.py         the gateway's counters and histograms
engine_metrics.py  the engine's own page
log_reader.py      the ends of log files, and what is written next
"""
