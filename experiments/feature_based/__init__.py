"""The feature-based approach: hidden states of a frozen BERT, and taggers that learn on them."""
