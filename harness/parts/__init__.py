"""L1, torch: what a recipe is and what it is made of."""
