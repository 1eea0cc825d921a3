"""Pages, charts and tables that people look at."""
