"""An encoder handed on: what a colleague needs of a run, on the hub with a model card, or as a graph for a runtime.

run -> `bundle` (what is handed on, and what stays here) + `card` (what it says) -> `upload`; run -> `graph` -> file.
"""
