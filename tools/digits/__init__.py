"""The parts of `tools/pretrain_digits_clip.py` and `tools/prepare_digits.py`."""
