"""Task kinds for chaos: quick, countable, and some that misbehave."""
