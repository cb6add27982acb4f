"""For tests: an oracle that computes recurrent layers, and the comparison of backends with it."""
