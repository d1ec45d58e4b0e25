"""Every setting: its schema, defaults, and how recipe, flags and `--set` become one config."""
