"""Network layers and their efficient implementations."""
