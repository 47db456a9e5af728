"""Path-traced groups of views of objects in real light, and the light network that learns from them."""
