"""BigEarthNet as a cloud-native cube: open it, search it, train on it where it lies."""
