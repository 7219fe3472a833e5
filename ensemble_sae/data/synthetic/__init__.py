"""Synthetic rows: sparse sums of known directions, features rarer and rarer, alone or together.

Source: "Towards a Probabilistic Disentanglement of Neural Network Activations, Part 2" (the
96-autoencoder study), section on the data sets.

Ground truth: `n_features` rows drawn from N(0, I), scaled to unit norm. A row is `code @ truth`,
and a code is Bernoulli(p) * amplitude with

* uncorrelated: p_i proportional to decay**i, with sum p_i = mean_active;
* correlated: z ~ N(0, C) for each row, p_i proportional to Phi(z_i) * decay**i, with the same
  sum in every row (but for what is cut off where a p_i is above 1). C is symmetric with uniform
  numbers in (0, 1), and positive definite by as much as is added to its diagonal.

The study's amplitudes are Uniform(0, 1). Not stated there: how far C is shifted; here its smallest
eigenvalue becomes 0.001 times what it was below zero.

`features` has the truth, `rows` what is drawn, `store` makes chunks when they are read, `writing`
puts either kind of store into a folder.
"""

from ensemble_sae.data.synthetic.features import covariance_factor, frequencies, ground_truth
from ensemble_sae.data.synthetic.rows import chunk_of_rows, codes
from ensemble_sae.data.synthetic.store import SyntheticStore, recipe_of
from ensemble_sae.data.synthetic.writing import finished, harvest, widths

__all__ = [
    "SyntheticStore",
    "chunk_of_rows",
    "codes",
    "covariance_factor",
    "finished",
    "frequencies",
    "ground_truth",
    "harvest",
    "recipe_of",
    "widths",
]
