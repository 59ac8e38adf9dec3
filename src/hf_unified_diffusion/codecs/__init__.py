"""Between raw data and the clean samples that the network predicts."""
