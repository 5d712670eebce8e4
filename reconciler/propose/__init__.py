"""Changes to a fleet repo as a person would write them: edits that keep comments and layout, and what they are for."""
