"""The model layer: specification, modules, reading from timm, counting, calibration sweep."""
