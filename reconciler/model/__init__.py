"""The nouns: desired state, observed state, the plan. Frozen values; imports nothing of ours, does no I/O."""
