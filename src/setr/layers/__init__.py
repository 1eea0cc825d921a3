"""Parts of networks, and how they are computed."""
