"""What `kumadp doctor` looks at: before a start, with the options of `run`, and while a data plane runs."""
