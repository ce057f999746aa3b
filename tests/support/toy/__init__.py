"""An own feature: what it takes to add a child process, a status section, a condition, a section handed over."""
