"""What a merge will do, before it: two desired states and a snapshot, told by the planner and the forecast. Pure values."""
