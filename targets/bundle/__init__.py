"""What is shipped: a folder that runs without vitrim and without torch, and proves that it is complete."""
