"""What runs on the cluster: residency, the Switchboard, the model servers and their engines."""
