"""Latency of networks that are not trained yet: a table of what their parts take, and predictions.

``graphs`` builds the ONNX graph of a network or of one cell without torch, ``parts`` says what a
deployed network is made of, ``timing`` times graphs in turns, ``fitting`` finds what each part
takes, ``measuring`` makes a table of it, ``table`` predicts and is the file, ``limits`` holds cells
to a limit, ``summary`` shows a table.
"""
