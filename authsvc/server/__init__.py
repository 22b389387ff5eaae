"""The running process: composition, ports, workers."""
