"""Reading images, masks and settings from files, URLs and object storage."""
