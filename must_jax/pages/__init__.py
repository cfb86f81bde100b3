"""What HTML pages that people look at are made of."""
