"""The archives that fgssl reads, a file each; its name is what stands before the colon of `--data cub:FOLDER`."""
