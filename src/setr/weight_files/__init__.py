"""Weight files of every known layout, and models made from them."""
