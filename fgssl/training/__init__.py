"""A pretraining run: plan, loop, feed, optimiser, log, results."""
