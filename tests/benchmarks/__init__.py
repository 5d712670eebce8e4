"""What the work costs, as ratios to a yardstick in the same run. `make bench` prints them; no test depends on a time."""
