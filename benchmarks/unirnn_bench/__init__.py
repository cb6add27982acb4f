"""The benchmark behind ``unirnn bench``."""
