"""What composites and speed are measured with."""
