"""OpenAI's Responses API: typed items in, typed items out. Nothing is kept between requests."""
