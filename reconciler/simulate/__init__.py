"""Virtual time: the real controller and the real agent logic against simulated machines, in the demo and in tests."""
