"""The run folder and its files: the one bridge between training and evaluation."""
