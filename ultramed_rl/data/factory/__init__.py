"""The data factory: instructions made, answered, scored, cleaned, compared, and paired."""
