"""Outlines that annotation tools leave beside images, and the masks drawn from them."""
