"""One page on which a person sees where every head of a network looks, and what would change if it looked elsewhere."""
