"""What is done to an Envoy bootstrap before Envoy sees it. Pure, but for the store."""
