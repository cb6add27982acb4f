"""What every module and every backend keeps to: the call, the weights, the limits, and the backend's interface."""
