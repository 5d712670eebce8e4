"""Virtual time: the real loop, planner and agent against simulated machines, network and clock; and the forecast from it."""
