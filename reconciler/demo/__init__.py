"""The demo: real processes on this machine, the controller and 76 agents, through a promotion, a bad release and its revert."""
