"""The loop: gather, plan, execute, record. Decides nothing itself; `planner` decides, `ports` act."""
