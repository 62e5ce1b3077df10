"""A table that someone brings: which columns are texts and labels, and the recipe that fits them."""
