"""Operations on logits without storing them at full size, and CUDA graphs."""
