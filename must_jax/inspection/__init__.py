"""What a run will see and do, on one page, before it starts."""
