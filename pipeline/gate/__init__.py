"""Judgement of an exported model: parity, modes, timing."""
