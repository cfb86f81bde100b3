"""What a step costs on devices that are not here: compiled ahead of time, and counted."""
