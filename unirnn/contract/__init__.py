"""What all modules and backends share: the call, the weights, the limits, and the backend's interface."""
