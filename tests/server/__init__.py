"""The HTTP service over a real socket, on loopback."""
