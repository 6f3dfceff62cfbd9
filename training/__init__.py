"""Train, evaluate and embed with the cube: the torch application, run from a checkout."""
