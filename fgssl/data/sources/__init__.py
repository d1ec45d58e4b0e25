"""From the string after `--data` to splits of images: presets, hub, folder, list, parquet."""
