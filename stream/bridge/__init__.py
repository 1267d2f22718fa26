"""Bridges: messages from Redis to where other systems listen.

A bridge is a consumer of its own group (`stream.subscribe`). It acknowledges a message when the
other side has taken it, so what Redis holds for it is its spool: its own restarts, and those of
Redis and of the other side, lose nothing.
"""
