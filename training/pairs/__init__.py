"""Pairs (reference view, target), made in batches on the device."""
