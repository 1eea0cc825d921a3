"""Work on logits that are never held at full size."""
