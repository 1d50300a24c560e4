"""What a client meets: the ingress, its HTTP surface, the client and the command line."""
