"""Parts of rationale_grid.py and rationale_sheet.py: grid of settings -> cells -> trained -> evaluated -> tables."""
