"""fgssl: self-supervised representations of fine-grained images, and what they look at."""

__version__ = "0.1.0"
