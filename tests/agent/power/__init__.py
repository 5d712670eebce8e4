"""A sweep of power cuts: what a whole update writes is recorded, call by call, and cut everywhere. Used by test_power_sweep."""
