"""What is counted of a test beside mIoU, and what is made of it."""
