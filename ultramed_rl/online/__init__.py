"""The online loop: a controller that knows no GPU, workers that compute, a store that remembers."""
