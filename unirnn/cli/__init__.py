"""The command ``unirnn``: a module for each group of its commands, and `unirnn.cli.app`, which has them all."""
