"""Latency of networks that are not trained yet: a table of what their parts take, and predictions.

``graphs`` builds the ONNX graph of a network or of one cell without torch, ``parts`` says what a
deployed network is made of, ``timing`` times graphs in turns, ``fitting`` finds what each part
takes, ``measuring`` makes a table of it, ``table`` predicts and is the file, ``summary`` shows it.
``counts`` and ``memory`` say what needs no measuring, ``limits`` what cells of a space cost.
"""

ROUNDS = 24
"""How often each model has its turn."""
