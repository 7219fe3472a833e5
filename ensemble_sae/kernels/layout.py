"""What the loops of the sparse step agree on: columns of `scalars [K, 8]`, Adam's numbers.

p += RATE * (m * ONE / (sqrt(v) * TWO + EPS) + DECAY * p), after m += KEEP1 * (g - m) and
v <- BETA2 * v + KEEP2 * g^2.
"""

RATE, KEEP1, BETA2, KEEP2, ONE, TWO, EPS, DECAY = range(8)
