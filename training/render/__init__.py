"""Objects that are rendered: meshes, their materials, cameras and light."""
