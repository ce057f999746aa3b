"""Metrics for a scraper: expositions of several sources read, merged, filtered, and served as one."""
