"""The common rationale: GradCAM of the loss, the branch that fits it, pooling with its map, the second look."""
