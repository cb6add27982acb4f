"""What tests of layers and of backends need."""
