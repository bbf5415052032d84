"""The OpenAI-shape REST API: requests, answers, errors."""
