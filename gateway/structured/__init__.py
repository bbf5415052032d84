"""Structured output: what a client asks for becomes a grammar that llguidance enforces token by token.

    grammars.py  JSON Schema, regular expression, choice, Lark or GBNF → llguidance's serialised grammar
    schema.py    what of a JSON Schema is refused here, since validators check more than llguidance enforces
    compiler.py  asks the grammar process, keeps what it knows; an error names the field and what is wrong
    worker.py    the grammar process: compiles what strangers send, with bounds on time, memory and stack
    rules.py     what cannot be combined with a grammar

The executor's side is executor/structured.py.
"""
