"""random_weights: a model of given shapes that has learned nothing, to time what such shapes take."""
