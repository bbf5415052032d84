"""The public gRPC API's own parts: messages to the gateway's types and back, and runs that a retry can join."""
