"""Objects in true light: path-traced groups of views, and the light network that learns from them."""
