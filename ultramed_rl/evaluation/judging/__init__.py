"""A language model's verdicts: what it is asked, how its replies are read, what they come to."""
