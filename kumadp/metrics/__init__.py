"""Metrics for a scraper: the expositions of several sources are read, filtered, merged, and served as one."""
