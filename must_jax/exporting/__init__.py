"""What leaves a finished run: checkpoints for other libraries, and a program to serve."""
