"""What a model's text answers: a letter, an option's text, a number, names."""
