"""The parts of `tools/fuzz_inputs.py`: what it mutates, and how it watches what happens then."""
