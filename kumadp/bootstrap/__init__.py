"""An Envoy bootstrap before Envoy gets it: parsed, compared, rewritten, guarded. Pure, except `prepare`."""
