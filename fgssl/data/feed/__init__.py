"""Batches from the pixels of a split: two views for training, crops for the probe."""
