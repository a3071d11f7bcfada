"""The load test of a site: the article's ``ab``, a mix through the API, and a report of both."""
