"""The online loop: a controller that knows no GPU, a crew that computes, a store that remembers."""
