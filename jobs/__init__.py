"""Tables to tables on Spark: archive, training set, train, parity."""
