"""The world's side of the ports: one adapter a file; each real one has a local twin that passes the same tests."""
