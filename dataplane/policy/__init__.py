"""The policy room: from an operator's YAML to a value that answers the slow path's questions.

    text ── document.py ──► plain values with lines ── model.py, load.py ──► Config ── compile.py ──► CompiledPolicy

Everything here is a pure function of data: no sockets, no C, no clock, and nothing is changed after it was made. A
commit compiles a new policy beside the running one and the slow path takes it up whole.

Why the answers are exact: a rule's field is a union of ranges of numbers (addresses on one 128-bit line, ports on a
16-bit line). The ends of all ranges of all rules cut that line into elementary intervals. No rule begins or ends
inside one, so every value of an interval matches the same rules, and one bit set per interval, with one bit per rule,
says which. A packet matches a rule if all fields match, so the sets of its fields are intersected; rules are numbered
in order, so the lowest bit that is left is the first match. The result is the same as trying the rules one by one, at
the cost of a few bisections whatever the number of rules; and because it is constant over a box of intervals, one
decision can stand for all its flows.
"""
