"""Another input resolution: the same weights, fewer patches, the position embedding resampled."""
