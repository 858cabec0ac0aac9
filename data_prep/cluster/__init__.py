"""Jobs that the workers of a cluster carry out, and the files that they share."""
