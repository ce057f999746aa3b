"""The life of one run: start, run loop, drain, reload, re-execution, adoption, control socket."""
