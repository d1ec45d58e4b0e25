"""One file an objective, named as the objective: its class, its settings and what it uses unless told otherwise."""
