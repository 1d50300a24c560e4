"""Trains the demo's vision model: it made `deployments/checkpoints/demo_data`."""
