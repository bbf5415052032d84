"""Chats, whatever API they come through: prompts with tools, and answers taken apart into text, thought and calls.

prompt.py, deltas.py   what goes in, what comes out
run.py                 one running chat
format.py              how the served model writes chats; plans one
tools.py               which tools are good; how templates see them
tool_grammar.py        turns that must call, or call by a schema
turn.py                takes a choice apart: reasoning.py first, then tool_parsers/
json_scanner.py        where a JSON object ends
"""
