"""The machine a run lives on: devices, memory, files, processes, signals, progress."""
