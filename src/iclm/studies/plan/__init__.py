"""Planning a training: parameters, memory and time of a base that need not be at hand."""
