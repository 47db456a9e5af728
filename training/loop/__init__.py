"""The model, what it minimises, and the loop."""
