"""Everything that is kept between turns, against a real Valkey."""
