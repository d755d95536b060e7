"""Packet diagnosis: which packets are meant, what is copied of them, and what was decided about each, in words.

diagnosis.py   what an operator has set; the thread that writes while anything is diagnosed
record.py      what C has put into its ring (diag.c)
capture.py     capture files          pcapng.py   their format
words.py       comments and stories   witness.py  the slow path, watched while it decides
"""
