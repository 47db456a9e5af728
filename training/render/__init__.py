"""Render objects: meshes, materials, cameras and light."""
