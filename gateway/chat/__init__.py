"""Chats, whatever API they come through: prompts with tools, and answers taken apart into text, thought and calls."""
