"""Pictures decoded once and kept: the memory-mapped cache, and the maps of frozen backbones."""
