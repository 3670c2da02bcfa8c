"""How processes stand: their seats, the workers in them, their calls."""
