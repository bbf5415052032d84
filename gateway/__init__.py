"""The gateway: client connections (OpenAI-shape REST, gRPC), tokenising, and the durable state of requests."""
