"""The embedded resolver: answers from a table and from other name servers."""
