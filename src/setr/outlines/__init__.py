"""Reading the outlines of annotation tools, and drawing masks from them."""
