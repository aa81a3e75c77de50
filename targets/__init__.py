"""What the hardware is: profiles, runtimes, workers, measuring: the bottom layer."""
