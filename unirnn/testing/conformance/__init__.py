"""The conformance suite: what every backend guarantees, as tests that pytest runs for each ``rnn_backend``."""
