"""Weight files of all known layouts, and the models built from them."""
