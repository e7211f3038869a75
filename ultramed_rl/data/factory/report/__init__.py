"""What a data set looks like: the paper's table 1, distributions, candidate models, and a map of topics."""
